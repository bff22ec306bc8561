"""The sink: whole lines, at once, and nothing that a terminal would obey."""

from __future__ import annotations

import errno
import io
import json
import os
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.audit.record import SEARCH_LIST, Record, open_record
from nono_ebpf.audit.sink import AuditSink, readable_line
from nono_ebpf.audit.summary import Summary
from nono_ebpf.model import Process

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def denial(comm: str = "curl") -> Record:
    record = open_record("flow", "redirect", Process(4242, comm, 1000, 7))
    record.target, record.port, record.reason = "api.example.com", 443, "no rule allows it"
    return record


def test_each_record_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    """A kill right after a record loses nothing of it, and each record names its sandbox."""
    path = tmp_path / "audit.ndjson"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        sink = AuditSink(fd, None, "box1")
        for count in (1, 2):
            sink.write(denial())
            lines = path.read_bytes().splitlines()
            assert len(lines) == count
            assert json.loads(lines[-1])["sandbox"] == "box1"
    finally:
        os.close(fd)
    assert (sink.lost, sink.failure) == (0, None)


def test_one_record_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """With O_APPEND one write(2) is one whole line even if several processes write."""
    writes: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, data: writes.append(data) or len(data))
    AuditSink(3, None, "box").write(denial())
    assert len(writes) == 1
    assert writes[0].endswith(b"\n")


@pytest.mark.parametrize("full", ["error", "short"])
def test_a_full_disk_is_counted_and_does_not_end_the_flow(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost record is never silent: the owner can tell how many and why."""

    def write(_: int, data: bytes) -> int:
        if full == "error":
            raise OSError(errno.ENOSPC, "no space")
        return len(data) - 1

    monkeypatch.setattr(os, "write", write)
    sink = AuditSink(3, None, "box")
    sink.write(denial())
    sink.write(denial())
    assert sink.lost == 2
    assert sink.failure == {"error": os.strerror(errno.ENOSPC), "short": "a record was cut short"}[full]


def test_a_line_that_was_cut_short_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there is room again, whatever comes next is a line of its own."""
    path = tmp_path / "log"
    sizes = iter((10, 1, None, None))
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: next(sizes)]))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        sink = AuditSink(fd, None, "box")
        for _ in range(4):
            sink.write(denial())
    finally:
        os.close(fd)
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    assert [line[-1:] for line in lines] == [lines[0][9:10], b"}", b"}"]
    assert sink.lost == 2


def test_the_readable_line_says_who_what_and_why() -> None:
    """One line without colour when the stream is no terminal."""
    stream = io.StringIO()
    AuditSink(None, stream, "box").write(denial())
    assert stream.getvalue() == ("nono-ebpf: deny flow curl[4242] api.example.com:443 - no rule allows it\n")


def test_a_request_shows_method_path_and_status() -> None:
    """The readable line of a request is enough to recognise it."""
    record = open_record("request", "http")
    record.decision, record.method, record.path, record.status = "allow", "GET", "/v1", 200
    record.target, record.port = "api.example.com", 443
    assert readable_line(record) == "nono-ebpf: allow request GET api.example.com:443 /v1 (200)"


def test_hostile_names_cannot_drive_the_terminal() -> None:
    """A program called ESC]0;… shows as text: C0, C1 and bidirectional overrides are escaped."""
    record = denial("\x1b]0;x\x07\x9b2J\u202e\n")
    line = readable_line(record)
    assert "\\x1b]0;x\\x07\\x9b2J\\u202e\\n[4242]" in line
    assert line.isprintable()


@pytest.mark.parametrize(("no_colour", "coloured"), [(None, True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(
    no_colour: str | None, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour appears on a terminal only, and NO_COLOR takes it away."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour is not None:
        monkeypatch.setenv("NO_COLOR", no_colour)
    stream = Terminal()
    AuditSink(None, stream, "box").write(denial())
    assert ("\x1b[31mdeny\x1b[0m" in stream.getvalue()) is coloured


def test_a_closed_reader_ends_the_readable_lines_only(tmp_path: Path) -> None:
    """When the terminal goes away, the file still gets everything."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    path = tmp_path / "log"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        sink = AuditSink(fd, Gone(), "box")
        sink.write(denial())
        sink.write(denial())
    finally:
        os.close(fd)
    assert len(path.read_bytes().splitlines()) == 2


def test_the_summary_gets_every_record_and_search_lists_stay_quiet() -> None:
    """What the summary counts is what was written; a search-list probe shows in neither place for people."""
    stream, summary = io.StringIO(), Summary()
    sink = AuditSink(None, stream, "box", summary)
    probe = denial()
    probe.denial_category = SEARCH_LIST
    sink.write(probe)
    assert (stream.getvalue(), summary.render()) == ("", [])
    sink.write(denial())
    assert len(summary.render()) == 2
