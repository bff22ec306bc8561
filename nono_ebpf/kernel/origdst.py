"""Asks the kernel whose a connection is and where it was going: the private socket option and the askers map."""

from __future__ import annotations

import ctypes
import errno
from ipaddress import ip_address
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import abi, libc

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from nono_ebpf.model import FlowOrigin, Process


class SocketOrigins:
    """Reads the record of an accepted connection; reading forgets it."""

    def take(self, connection: socket.socket) -> FlowOrigin | None:
        """The flow's origin, or None: the kernel has no record, so nobody of the sandbox's cgroup opened it."""
        size = ctypes.sizeof(abi.nono_origin)
        try:
            raw = connection.getsockopt(abi.SockOpt.SOL, abi.SockOpt.SO_ORIGIN, size)
        except OSError:  # ENOPROTOOPT: no hook has answered
            return None
        return abi.origin_of(abi.nono_origin.from_buffer_copy(raw)) if len(raw) == size else None


class _MapAttributes(ctypes.Structure):
    """union bpf_attr, the part for BPF_MAP_*_ELEM."""

    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _Word(ctypes.Structure):
    _fields_ = (("value", ctypes.c_uint64),)


def _map_call(operation: str, command: int, map_fd: int, key: ctypes._CData, value: ctypes.Structure) -> None:
    attributes = _MapAttributes(map_fd=map_fd, key=ctypes.addressof(key), value=ctypes.addressof(value), flags=0)
    libc.bpf(operation, command, attributes)


def write_settings(map_fd: int, settings: abi.nono_settings) -> None:
    """Replace the one entry of the settings array."""
    only = ctypes.c_uint32(0)
    _map_call("write the settings map", libc.BPF_MAP_UPDATE_ELEM, map_fd, only, settings)


def write_open_ports(map_fd: int, ports: Iterable[int]) -> None:
    """Open these ports of the host's loopback, once and for all. They count as soon as the settings have `opens_ports`.

    The map is the supervisor's alone: who can write it reaches every service of the host.
    """
    words: dict[int, int] = {}
    for port in ports:
        words[port // 64] = words.get(port // 64, 0) | 1 << port % 64
    for word, bits in words.items():
        _map_call("write the open ports", libc.BPF_MAP_UPDATE_ELEM, map_fd, ctypes.c_uint32(word), _Word(bits))


def read_count(map_fd: int) -> int:
    """The one entry of a counter array."""
    only, count = ctypes.c_uint32(0), _Word()
    _map_call("read a counter map", libc.BPF_MAP_LOOKUP_ELEM, map_fd, only, count)
    return int(count.value)


class Askers:
    """Who sent the datagram that our resolver received last from that address. Needs no capability, only the map fd."""

    def __init__(self, map_fd: int, netns_cookie: int) -> None:
        self._map_fd = map_fd
        self._netns_cookie = netns_cookie

    def __call__(self, source: tuple[str, int]) -> Process | None:
        """`source` as recvfrom gave it; None when the sender's socket was gone before we looked."""
        key = abi.nono_source(netns_cookie=self._netns_cookie, addr=abi.packed(ip_address(source[0])), port=source[1])
        process = abi.nono_process()
        try:
            _map_call("look an asker up", libc.BPF_MAP_LOOKUP_ELEM, self._map_fd, key, process)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return abi.process_of(process)
