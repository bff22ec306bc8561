"""A secret in memory: in pages of its own that are not swapped, not dumped, not handed to a forked child, and that are
overwritten at the end. mlock(2), madvise(2).

What `reveal` returns is an ordinary object of the interpreter, which promises none of this: reveal late, keep nothing.
"""

from __future__ import annotations

import ctypes
import hmac
import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES: Final = 65536
_WIPE_ON_FORK = 18  # MADV_WIPEONFORK, Linux 4.14; the mmap module has no name for it
_mlock = ctypes.CDLL(None).mlock
_mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Secret:
    """Bytes that have no text form, no copy and no hash. A copy of `value` is made; the caller's stays the caller's.

    `locked`: the kernel keeps it out of swap. False where RLIMIT_MEMLOCK forbids that.
    """

    __slots__ = ("_length", "_memory", "locked")
    __hash__ = None  # type: ignore[assignment]  # as the language reference has it

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self._length = len(value)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(self._length, 1), flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._memory.madvise(mmap.MADV_DONTDUMP)
        self._memory.madvise(_WIPE_ON_FORK)
        # Before anything is in it.
        self.locked = _mlock(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)), len(self._memory)) == 0
        self._memory[: self._length] = value

    def reveal(self) -> bytes:
        """The secret. Raises ValueError once it is wiped."""
        return self._memory[: self._length]

    @contextmanager
    def lent(self) -> Iterator[memoryview]:
        """The same without a copy, for a system call that takes a buffer. Not to be kept."""
        with memoryview(self._memory) as whole, whole[: self._length] as part, part.toreadonly() as view:
            yield view

    def wipe(self) -> None:
        """Overwrite it and give the memory back. A second time does nothing."""
        if not self._memory.closed:
            self._memory[:] = bytes(len(self._memory))
            self._memory.close()

    def __del__(self) -> None:
        if hasattr(self, "_memory"):  # not where making it failed
            self.wipe()

    def __eq__(self, other: object) -> bool:
        """In a time that does not tell where they differ. A wiped one equals nothing."""
        if not isinstance(other, Secret):
            return NotImplemented
        if self._memory.closed or other._memory.closed:
            return False
        with self.lent() as mine, other.lent() as theirs:
            return hmac.compare_digest(mine, theirs)

    def __repr__(self) -> str:
        return "Secret(…)"

    def __format__(self, _: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError("a secret is not copied")
