"""The maps of a sandbox's programs, found through what is pinned: pin → link → program → map. bpf(2), root only."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import libc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GET_NEXT_KEY, _OBJ_GET, _PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _GET_INFO_BY_FD = 4, 7, 13, 14, 15
_MAPS_MAX = 64
Info = TypeVar("Info", bound=ctypes.Structure)


class _ObjectGet(ctypes.Structure):
    _fields_ = (("pathname", ctypes.c_uint64), ("bpf_fd", ctypes.c_uint32), ("file_flags", ctypes.c_uint32))


class _ById(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("id", "next_id", "open_flags"))


class _Info(ctypes.Structure):
    _fields_ = (("bpf_fd", ctypes.c_uint32), ("info_len", ctypes.c_uint32), ("info", ctypes.c_uint64))


class _NextKey(ctypes.Structure):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("next_key", ctypes.c_uint64),
    )


class _LinkInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("type", "id", "prog_id", "pad", "a", "b", "c", "d"))


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info up to `map_ids`."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
    )


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info up to `name`."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("type", "id", "key_size", "value_size", "max_entries", "map_flags")),
        ("name", ctypes.c_char * 16),
    )


class Maps:
    """The maps that a sandbox's programs use, by name. Holds a descriptor of each until `close`."""

    def __init__(self, pins: Path) -> None:
        self._fds: dict[str, int] = {}
        self._key_bytes: dict[str, int] = {}
        for pin in sorted(pins.iterdir()):
            for map_id in _map_ids(pin):
                self._keep(map_id)

    def _keep(self, map_id: int) -> None:
        fd = libc.bpf("open a map", _MAP_GET_FD_BY_ID, _ById(map_id))
        info = _info(fd, _MapInfo())
        name = info.name.decode()
        if name in self._fds:
            os.close(fd)
        else:
            self._fds[name], self._key_bytes[name] = fd, info.key_size

    def entries(self, name: str) -> int:
        """How many entries a hash map has now. Raises KeyError for a map that no program uses."""
        key, following = (ctypes.create_string_buffer(self._key_bytes[name]) for _ in range(2))
        count, at = 0, 0
        while _next_key(self._fds[name], at, ctypes.addressof(following)):
            key.raw = following.raw
            at = ctypes.addressof(key)
            count += 1
        return count

    def close(self) -> None:
        """Let go of every map."""
        for fd in self._fds.values():
            os.close(fd)


def _info(fd: int, info: Info) -> Info:
    libc.bpf("ask for a description", _GET_INFO_BY_FD, _Info(fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return info


def _next_key(map_fd: int, key: int, following: int) -> bool:
    try:
        libc.bpf("walk a map", _GET_NEXT_KEY, _NextKey(map_fd, 0, key, following))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _map_ids(pin: Path) -> list[int]:
    path = ctypes.create_string_buffer(os.fsencode(pin))
    with _opened(libc.bpf(f"open {pin}", _OBJ_GET, _ObjectGet(ctypes.addressof(path), 0, 0))) as link:
        program_id = _info(link, _LinkInfo()).prog_id
    with _opened(libc.bpf("open a program", _PROG_GET_FD_BY_ID, _ById(program_id))) as program:
        ids = (ctypes.c_uint32 * _MAPS_MAX)()
        info = _info(program, _ProgramInfo(nr_map_ids=_MAPS_MAX, map_ids=ctypes.addressof(ids)))
    return list(ids[: info.nr_map_ids])
