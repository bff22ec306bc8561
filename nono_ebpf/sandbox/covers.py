"""Directories that hold secrets, covered as a whole. mount_namespaces(7), rename(2).

A mask over a file is gone as soon as somebody outside renames another file over it, which is how secrets are rotated
(Linux 3.19 and newer: what is unlinked loses its mounts in every namespace). A mount over the directory stays, whatever
becomes of the names in it. Inside, nothing moves it: what is mounted upon cannot be renamed.

What it cannot outlast is that the directory itself, or one above it, is renamed or removed by somebody outside: a mount
belongs to a directory, not to a path, and another directory under the same name is not covered. No mount prevents
that, so it is watched for, and then the sandbox ends.
"""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import SandboxError
from nono_ebpf.kernel import inotify, libc, mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nono_ebpf.kernel.mounts import Mount


class Covers:
    """Of `directories`, real paths. To be made in the sandbox's mount namespace before anything is mounted there: what
    happens to them from then on is seen.

    Raises:
        SandboxError: one is not there.
        KernelError: they cannot be watched: the account root has no inotify instance left.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = sorted(directories)
        self._devices: dict[Path, str] = {}  # of the covers: each is a file system of its own
        self._elsewhere = _elsewhere(mounts.read(), self._directories)
        self._watch = _watch(self._directories) if directories else None

    @property
    def all(self) -> list[Path]:
        """The directories, and where else what is in them can be seen."""
        return [*self._directories, *self._elsewhere]

    def put(self, is_replaced: Callable[[Path], bool]) -> None:
        """Cover them, but for what the view has not anyway, as `is_replaced` knows."""
        for directory in self._directories:
            if not is_replaced(directory) and not any(map(directory.is_relative_to, self._devices)):
                self._devices[directory] = _cover(directory)
        for path in self._elsewhere:
            _cover_elsewhere(path)

    def check(self) -> None:
        """Raises SandboxError when one has fallen, or is no longer where it was put."""
        there = {(mount.place, mount.device) for mount in mounts.read()}  # a place is shown by its present name
        for cover in self._devices.items():
            if cover not in there:
                raise SandboxError(
                    f"{cover[0]}, where a secret lies, was renamed or removed outside: what is there now cannot be "
                    "kept from the command, which is ended; replace the files in it, not the directory"
                )

    def guard(self, fallen: Callable[[SandboxError], None]) -> None:
        """From now on, in a thread: call `fallen` when one has fallen, or cannot be watched any more."""
        if self._watch is not None:
            threading.Thread(target=self._guard, args=(self._watch, fallen), daemon=True).start()

    def _guard(self, watch: inotify.Watch, fallen: Callable[[SandboxError], None]) -> None:
        try:
            with mounts.TABLE.open("rb") as table:
                waiting = select.poll()
                waiting.register(watch, select.POLLIN)  # a rename
                waiting.register(table, select.POLLPRI)  # a mount that is gone: proc_pid_mountinfo(5)
                while True:
                    watch.forget()
                    self.check()
                    waiting.poll()
        except SandboxError as error:
            fallen(error)
        except OSError as error:
            fallen(SandboxError(f"what hides secrets cannot be watched: {error}"))


def _watch(directories: Sequence[Path]) -> inotify.Watch:
    """For what becomes of them and of those above."""
    made = inotify.Watch()
    for directory in directories:
        if directory != Path(os.path.realpath(directory)):
            raise SandboxError(f"{directory}, where a secret lies, is not where it was")
        for each in (directory, *directory.parents):
            made.add(each)
    return made


def _elsewhere(table: Sequence[Mount], directories: Sequence[Path]) -> list[Path]:
    """Other mounts of them, and of what is mounted below them."""
    below = [mount.place for mount in table if any(map(mount.place.is_relative_to, directories))]
    found = {alias for path in (*directories, *below) for alias in mounts.aliases(table, path)}
    return sorted(path for path in found if not any(map(path.is_relative_to, directories)))


def _cover(directory: Path) -> str:
    """The device of the file system that covers it."""
    mounts.fresh(directory, "mode=0755", libc.MS_RDONLY)
    device = directory.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _cover_elsewhere(path: Path) -> None:
    """A file is mounted there by itself. Covered, it would be seen again as soon as its name is taken by another: the
    mount goes instead.
    """
    if path.is_dir():
        _cover(path)
    elif path.exists():
        libc.unmount(str(path))
