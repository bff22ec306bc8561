"""inotify(7), as far as it says that a directory is no longer where it was. Python has no module for it."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path

_GONE = 0x0000_0800 | 0x0000_0400  # IN_MOVE_SELF, IN_DELETE_SELF
_ONLY_DIRECTORIES = 0x0100_0000  # IN_ONLYDIR
_EVENTS_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Readable once one of the directories has been renamed or removed."""

    def __init__(self) -> None:
        self._fd = _checked("inotify_init1", _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        """For poll(2)."""
        return self._fd

    def add(self, directory: Path) -> None:
        """Raises KernelError, for one that is none as well."""
        mask = _GONE | _ONLY_DIRECTORIES
        _checked(f"watch {directory}", _libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))

    def forget(self) -> None:
        """What it has seen so far."""
        try:
            while os.read(self._fd, _EVENTS_BYTES):
                pass
        except BlockingIOError:
            return


def _checked(operation: str, result: int) -> int:
    if result < 0:
        raise KernelError(operation, ctypes.get_errno())
    return result
