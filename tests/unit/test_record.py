"""Audit records: their text forms, whatever a program is called and whatever it asks for."""

from __future__ import annotations

import json
from ipaddress import ip_address

import msgspec
import pytest

from nono_ebpf.audit.record import (
    TEXT_LIMIT,
    Record,
    from_line,
    open_record,
    printable,
    to_line,
    where,
    without_query,
)
from nono_ebpf.model import Endpoint, FlowOrigin, Process

CURL = Process(pid=4242, comm="curl", uid=1000, cgroup_id=77)
HOSTILE = "a\x00b\nc\x1b[31md\x7fe\x9bf\u202eg\u2028h\ud800i\U0001f600"


def test_a_record_is_one_line_of_json_without_what_is_not_known() -> None:
    """A line has exactly the known fields, under their published names, and one line feed."""
    record = open_record("flow", "redirect", origin=FlowOrigin(Endpoint(ip_address("2001:db8::1"), 443), CURL))
    record.timestamp_unix_ms = 1
    record.target, record.port, record.bytes_sent = "example.com", 443, 0
    line = to_line(record)
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "timestamp_unix_ms": 1,
        "event": "flow",
        "mode": "redirect",
        "decision": "deny",
        "original_destination": "[2001:db8::1]:443",
        "pid": 4242,
        "comm": "curl",
        "uid": 1000,
        "cgroup": 77,
        "target": "example.com",
        "port": 443,
        "bytes_sent": 0,
    }


def test_the_published_fields_are_all_there_and_no_other() -> None:
    """No field is renamed by accident, and none appears that could hold a body, a header or a secret."""
    names = """
        timestamp_unix_ms event mode decision denial_category auth_mechanism auth_outcome flow_id sandbox pid comm uid
        cgroup original_destination identity target port resolved_address upstream_proxy route_id credential
        injection_mode rule rule_source method path status reason remedy sniff bytes_sent bytes_received duration_ms
    """
    assert " ".join(field.name for field in msgspec.structs.fields(Record)) == " ".join(names.split())


def test_a_record_starts_as_a_denial() -> None:
    """A record written because something failed half-way does not claim that it was allowed."""
    assert open_record("dns", "dns").decision == "deny"


def test_the_process_is_optional_and_taken_over_whole() -> None:
    """A lookup names its process without a flow, and a record without either still has its time."""
    named, unnamed = open_record("dns", "dns", CURL), open_record("dns", "dns")
    assert (named.pid, named.comm, named.uid, named.cgroup) == (4242, "curl", 1000, 77)
    assert (unnamed.pid, unnamed.comm) == (None, None)
    assert unnamed.timestamp_unix_ms > 1_600_000_000_000


def test_hostile_text_leaves_only_plain_ascii_in_the_line() -> None:
    """No control character, C1, bidirectional override or lone surrogate survives as a raw byte."""
    record = open_record("request", "http", Process(1, HOSTILE, 0, 0))
    line = to_line(record)
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    # Strict readers (this one refuses lone surrogates) get every character back, the surrogate spelled out.
    assert from_line(line).comm == HOSTILE.replace("\ud800", "\\ud800")


def test_a_line_reads_back_as_the_record() -> None:
    """Another process can rebuild the record from the log."""
    record = open_record("dns", "dns", CURL)
    record.target, record.reason, record.remedy = "x.example", "no rule", "--allow-domain x.example"
    assert from_line(to_line(record)) == record


def test_long_text_is_cut() -> None:
    """A path of a megabyte does not become a line of a megabyte."""
    record = open_record("request", "http")
    record.path = "/" + "a" * 1_000_000
    path = json.loads(to_line(record))["path"]
    assert len(path) == TEXT_LIMIT
    assert path.endswith("a…")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a?key=s3cret", "/a"),
        ("/a#s3cret", "/a"),
        ("/a#x?s3cret", "/a"),
        ("/a?x#s3cret", "/a"),
        ("/", "/"),
        ("", ""),
        ("*", "*"),
    ],
)
def test_a_path_has_no_query(target: str, path: str) -> None:
    """Queries and fragments, where keys travel, are not recorded."""
    assert without_query(target) == path


def test_printable_text_cannot_move_a_cursor_or_reverse_a_line() -> None:
    """Every character that is not plainly visible is spelled out."""
    assert printable("a\x1b[2Jb\x9bc\u202ed\ne") == "a\\x1b[2Jb\\x9bc\\u202ed\\ne"
    assert printable("bücher ✓") == "bücher ✓"
    assert printable("x" * 50, 10) == "x" * 9 + "…"
    assert printable("\x00" * 10, 10) == "\\x00\\x00\\" + "…"


@pytest.mark.parametrize(
    ("target", "port", "shown"),
    [
        ("example.com", 443, "example.com:443"),
        ("example.com", None, "example.com"),
        ("2001:db8::1", 443, "[2001:db8::1]:443"),
        (None, None, "192.0.2.1:22"),
    ],
)
def test_where_names_the_target_as_people_do(target: str | None, port: int | None, shown: str) -> None:
    """The host and port if known, else what was dialled."""
    record = open_record("flow", "redirect", origin=FlowOrigin(Endpoint(ip_address("192.0.2.1"), 22), CURL))
    record.target, record.port = target, port
    assert where(record) == shown


def test_where_answers_for_a_record_that_knows_nothing() -> None:
    """A kernel event may have neither a target nor a destination."""
    assert where(open_record("kernel", "kernel")) == "?"
