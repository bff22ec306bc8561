"""Mounts: the table of them, under what other names a file is seen, and how new ones are put in place.

proc_pid_mountinfo(5): `ID PARENT MAJOR:MINOR ROOT PLACE … - KIND SOURCE OPTIONS`, octal escapes in paths.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import libc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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


def handles(paths: Iterable[Path]) -> dict[Path, int]:
    """O_PATH fds (the caller's) of those that exist and are no symbolic links, to bind them later."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            if not path.is_symlink():
                found[path] = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    return found


def bind_over(source: Path, handle: int) -> None:
    """Mount `source` over the directory that `handle` refers to, wherever it is now; nowhere when it was removed."""
    _bind(str(source), f"/proc/self/fd/{handle}", handle)


def fresh(path: Path, options: str, flags: int = 0) -> None:
    """An empty tmpfs over the directory `path`; `options` as in tmpfs(5), more `flags` as in mount(2)."""
    libc.mount("tmpfs", str(path), "tmpfs", libc.MS_NOSUID | libc.MS_NODEV | flags, options)


def replace_with_copy(directory: Path, work: Path, links: Mapping[str, Path]) -> None:
    """Put a directory in place of `directory` that has what is in it, and `links` besides: for names that are missing
    where nothing can be made. What comes later, or is renamed, is not seen in it. `work`: an empty directory in which
    root alone writes.
    """
    fresh(work, "mode=0755")
    for entry in directory.iterdir():
        if entry.name in links:
            continue
        if entry.is_symlink():
            (work / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir() or entry.is_file():
            bind_file(entry, work / entry.name)
    for name, target in links.items():
        (work / name).symlink_to(target)
    libc.mount(str(work), str(directory), None, libc.MS_BIND | libc.MS_REC)
    libc.unmount(str(work))


def bind_handle(handle: int, path: Path) -> None:
    """Mount what `handle` refers to at `path`, which is made: only where nobody else's hands are.

    When it was removed, what is made stays as it is, empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        path.mkdir()
    else:
        path.touch()
    _bind(f"/proc/self/fd/{handle}", str(path), handle)


def _bind(source: str, target: str, handle: int) -> None:
    """One of the two is what `handle` refers to, which may have been removed: the kernel mounts nothing there."""
    try:
        libc.mount(source, target, None, libc.MS_BIND | libc.MS_REC)
    except KernelError as error:
        if error.errno != errno.ENOENT or os.fstat(handle).st_nlink:
            raise


def bind_file(source: Path, target: Path) -> None:
    """The same for a file that root alone can replace."""
    handle = os.open(source, os.O_PATH | os.O_CLOEXEC)
    bind_handle(handle, target)
    os.close(handle)
