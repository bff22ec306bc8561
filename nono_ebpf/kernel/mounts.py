"""The mount table: which file system is mounted where, and under what other names a file of it is seen.

proc_pid_mountinfo(5): `ID PARENT MAJOR:MINOR ROOT PLACE … - KIND SOURCE OPTIONS`, octal escapes in paths.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line. `root`: the directory or file of the file system that is seen at `place`."""

    device: str
    root: Path
    place: Path
    kind: str


def read() -> list[Mount]:
    """Every mount of this namespace; of several on one place, the last is the one that is seen."""
    found = []
    for line in os.fsdecode(TABLE.read_bytes()).rstrip("\n").split("\n"):
        before, _, after = line.partition(" - ")
        _, _, device, root, place, *_ = before.split(" ")
        found.append(Mount(device, _path(root), _path(place), after.split(" ", 1)[0]))
    return found


def _path(text: str) -> Path:
    return Path(os.fsdecode(os.fsencode(text).decode("unicode_escape").encode("latin-1")))


def aliases(table: Sequence[Mount], path: Path) -> Iterator[Path]:
    """Other names of `path`, and of what is below it where only a part of it is mounted elsewhere."""
    holding = _holding(table, path)
    inner = holding.root / path.relative_to(holding.place)
    for mount in table:
        if mount is holding or mount.device != holding.device:
            continue
        if inner.is_relative_to(mount.root):
            yield mount.place / inner.relative_to(mount.root)
        elif mount.root.is_relative_to(inner):
            yield mount.place


def _holding(table: Sequence[Mount], path: Path) -> Mount:
    """The mount that `path` is looked up in: the deepest, and of several there the last."""
    around = [mount for mount in table if path.is_relative_to(mount.place)]
    deepest = max(len(mount.place.parts) for mount in around)
    return [mount for mount in around if len(mount.place.parts) == deepest][-1]
