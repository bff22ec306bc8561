"""The kernel's own denials, read from the BPF ring buffer.

Layout (kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst): one page whose first word is the consumer position
(ours to write), one page whose first word is the producer position, then the data pages, mapped twice in a row so that
no record wraps. A record is an 8-byte header (length with a busy and a discard bit, page offset) and its
bytes, padded to 8.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import TYPE_CHECKING

from nono_ebpf.kernel import abi

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY, _DISCARD = 1 << 31, 1 << 30
_HEADER = 8


class DenialReader:
    """Owns the map's fd for as long as the process lives; readable in poll(2) when there is something new."""

    def __init__(self, map_fd: int) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        self._fd = map_fd
        self._size = abi.Limit.DENIAL_PAGES * page
        self._consumer = mmap.mmap(map_fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        length = page + 2 * self._size
        self._producer = mmap.mmap(map_fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data = page
        self._position = ctypes.c_ulong.from_buffer(self._consumer)

    def fileno(self) -> int:
        """For add_reader."""
        return self._fd

    def read(self) -> Iterator[tuple[abi.Reason, abi.nono_origin]]:
        """Everything that is there now."""
        while (position := self._position.value) < self._produced():
            start = self._data + position % self._size
            head = int.from_bytes(self._producer[start : start + 4], sys.byteorder)
            if head & _BUSY:
                return
            length = head & ~_DISCARD
            if not head & _DISCARD and length >= ctypes.sizeof(abi.nono_denial):
                raw = self._producer[start + _HEADER : start + _HEADER + ctypes.sizeof(abi.nono_denial)]
                denial = abi.nono_denial.from_buffer_copy(raw)
                yield abi.Reason(denial.reason), denial.origin
            self._position.value = position + (length + _HEADER + 7) // 8 * 8

    def _produced(self) -> int:
        return int.from_bytes(self._producer[:8], sys.byteorder)
