"""Where records go: one line to a file, one readable line to a person, and the summary.

Knows file descriptors and terminals. Must not know what a record means beyond showing it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

from nono_ebpf.audit.record import UNWANTED, Record, printable, to_line, where

if TYPE_CHECKING:
    from nono_ebpf.audit.summary import Summary

# SGR codes, ECMA-48 §8.3.117.
_COLOURS = {"allow": "\x1b[32m", "deny": "\x1b[31m"}
_PLAIN = "\x1b[0m"


class AuditSink:
    """Writes each record the moment it is complete, so that a kill loses nothing that was written.

    `fd` must have been opened with O_APPEND: then one write(2) is one whole line, whoever else writes
    (open(2)). The sink does not close it. `verbose` gets a readable line; `summary` gets every record.

    A record that the file does not take must not end the flow it is about: it is counted in `lost`, and
    `failure` keeps the first reason, for the owner to report.
    """

    def __init__(self, fd: int | None, verbose: TextIO | None, sandbox: str, summary: Summary | None = None) -> None:
        self._fd = fd
        self._verbose = verbose
        self._sandbox = sandbox
        self._summary = summary
        self._colour = verbose is not None and verbose.isatty() and "NO_COLOR" not in os.environ
        self._torn = False
        self.lost = 0
        self.failure: str | None = None

    def write(self, record: Record) -> None:
        """Write `record` everywhere it belongs; sets its `sandbox`."""
        record.sandbox = self._sandbox
        if self._summary is not None:
            self._summary.add(record)
        if self._fd is not None:
            self._append(self._fd, to_line(record))
        if self._verbose is not None:
            self._show(self._verbose, record)

    def _append(self, fd: int, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(fd, line)
        except OSError as error:
            self._lose(os.strerror(error.errno or 0))
            return
        self._torn = written != len(line)
        if self._torn:
            # A full disk cuts a line short; completing it later would splice it into another one.
            self._lose("a record was cut short")

    def _lose(self, reason: str) -> None:
        self.lost += 1
        self.failure = self.failure or reason

    def _show(self, stream: TextIO, record: Record) -> None:
        if record.denial_category in UNWANTED:
            return
        try:
            stream.write(readable_line(record, colour=self._colour) + "\n")
            stream.flush()
        except OSError:
            # Whoever was reading has gone; the file still gets everything.
            self._verbose = None


def readable_line(record: Record, *, colour: bool = False) -> str:
    """One line for a person, safe to print on a terminal."""
    verdict = f"{_COLOURS[record.decision]}{record.decision}{_PLAIN}" if colour else record.decision
    parts = ["nono-ebpf:", verdict, record.event, printable(_who(record)), printable(_what(record))]
    if record.status is not None:
        parts.append(f"({record.status})")
    if record.reason:
        parts.append(f"- {printable(record.reason)}")
    return " ".join(part for part in parts if part)


def _who(record: Record) -> str:
    return "" if record.pid is None else f"{record.comm or '?'}[{record.pid}]"


def _what(record: Record) -> str:
    return " ".join(part for part in (record.method, where(record), record.path) if part)
