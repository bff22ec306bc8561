"""What was denied, told once at the end, with the option that would permit it.

Knows how to group and show denials. Must not know how they came about. Memory is bounded: a hostile program
that names a million hosts fills a fixed number of groups, and the rest is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nono_ebpf.audit.record import UNWANTED, printable, where

if TYPE_CHECKING:
    from nono_ebpf.audit.record import Record

# A screenful: more lines than this are not a summary.
GROUP_LIMIT = 40


@dataclass(slots=True)
class _Group:
    where: str
    who: str
    reason: str
    remedy: str | None
    count: int = 1

    def columns(self) -> tuple[str, str, str]:
        times = f" \N{MULTIPLICATION SIGN}{self.count}" if self.count > 1 else ""
        return self.where, self.who + times, self.reason


class Summary:
    """Collects denials grouped by target, port, reason and command name.

    What nobody asked for is left out. So is a process that was told to authenticate, and did: many clients wait for
    that.
    """

    def __init__(self, limit: int = GROUP_LIMIT) -> None:
        self._limit = limit
        self._groups: dict[tuple[str | None, ...], _Group] = {}
        self._challenged: dict[int | None, Record] = {}
        self._more = 0

    def add(self, record: Record) -> None:
        """Take note of `record` if it is a denial."""
        if record.auth_outcome == "succeeded":
            self._challenged.pop(record.pid, None)
        if record.decision != "deny" or record.denial_category in UNWANTED:
            return
        if record.auth_outcome == "failed" and len(self._challenged) < self._limit:
            self._challenged.setdefault(record.pid, record)
        else:
            self._count(record)

    def _count(self, record: Record) -> None:
        key = (where(record), record.reason, record.comm)
        if (group := self._groups.get(key)) is not None:
            group.count += 1
        elif len(self._groups) < self._limit:
            self._groups[key] = _group(record)
        else:
            self._more += 1

    def render(self) -> list[str]:
        """The lines to print, in order of first occurrence; none when nothing was denied. To be called once."""
        for record in self._challenged.values():
            self._count(record)
        if not self._groups:
            return []
        groups = list(self._groups.values())
        widths = [max(map(len, column)) for column in zip(*(each.columns() for each in groups), strict=True)]
        lines = [f"nono-ebpf: {sum(each.count for each in groups) + self._more} denied"]
        lines += [_line(each, widths) for each in groups]
        if self._more:
            lines.append(f"  … and {self._more} more")
        return lines


def _group(record: Record) -> _Group:
    who = "" if record.pid is None else f"{printable(record.comm or '?', 32)} (pid {record.pid})"
    remedy = None if record.remedy is None else printable(record.remedy)
    return _Group(printable(where(record), 120), who, printable(record.reason or "denied"), remedy)


def _line(group: _Group, widths: list[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(group.columns(), widths, strict=True)]
    advice = f"allow with: {group.remedy}" if group.remedy else ""
    return ("  " + "  ".join([*cells, advice])).rstrip()
