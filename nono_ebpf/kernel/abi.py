"""Mirror of bpf/nono_abi.h: same names, same order. A test compares the two through BTF.

Nobody outside this package sees a ctypes value: `origin_of` turns one into what the rest of the program uses.
"""

from __future__ import annotations

import ctypes
import socket
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from nono_ebpf.model import Endpoint, FlowOrigin, IPAddress, Process

_u8, _u16, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class Limit(IntEnum):
    """enum nono_limit."""

    COMM_BYTES = 16
    ORIGINS_MAX = 65536
    ASKERS_MAX = 4096
    DENIAL_PAGES = 16
    PORT_WORDS = 1024


class SockOpt(IntEnum):
    """enum nono_sockopt."""

    SOL = 0x6E6F
    SO_ORIGIN = 1


class Reason(IntEnum):
    """enum nono_reason."""

    NOT_SERVED = 1
    DATAGRAM = 2
    SOCKET = 3
    NO_RECORD = 4
    DATAGRAM_CONNECT = 5


class nono_process(ctypes.Structure):  # noqa: N801  # the name in nono_abi.h, which BTF is compared by
    """Who called."""

    _fields_ = (("cgroup_id", _u64), ("pid", _u32), ("uid", _u32), ("comm", _u8 * Limit.COMM_BYTES))


class nono_destination(ctypes.Structure):  # noqa: N801  # as above
    """Where to."""

    _fields_ = (("addr", _u8 * 16), ("port_be", _u16), ("protocol", _u16), ("type", _u32))


class nono_origin(ctypes.Structure):  # noqa: N801  # as above
    """A flow, as the connect hook saw it."""

    _fields_ = (("process", nono_process), ("destination", nono_destination), ("seen_ns", _u64))


class nono_source(ctypes.Structure):  # noqa: N801  # as above
    """The client's own end of a flow."""

    _fields_ = (
        ("netns_cookie", _u64),
        ("addr", _u8 * 16),
        ("port", _u16),
        ("listener_port", _u16),
        ("pad", _u32),
    )


class nono_denial(ctypes.Structure):  # noqa: N801  # as above
    """A refusal that never left the kernel."""

    _fields_ = (("origin", nono_origin), ("reason", _u32), ("pad", _u32))


class nono_settings(ctypes.Structure):  # noqa: N801  # as above
    """What the programs are told."""

    _fields_ = (
        ("netns_cookie", _u64),
        ("own_v4", _u8 * 16),
        ("own_v6", _u8 * 16),
        ("proxy_port_be", _u16),
        ("dns_port_be", _u16),
        ("alive", _u16),
        ("opens_ports", _u16),
    )


def packed(address: IPAddress) -> ctypes.Array[ctypes.c_uint8]:
    """16 bytes, IPv4 as IPv4-mapped, the form of every `addr`."""
    raw = address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
    return (_u8 * 16).from_buffer_copy(raw)


def unpacked(addr: ctypes.Array[ctypes.c_uint8]) -> IPAddress:
    """The address of an `addr` field; IPv4-mapped becomes IPv4."""
    raw = bytes(addr)
    if raw.startswith(b"\0" * 10 + b"\xff\xff"):
        return IPv4Address(raw[12:])
    return IPv6Address(raw)


def process_of(process: nono_process) -> Process:
    """The task's name is cut at its NUL and read as UTF-8, unreadable bytes escaped."""
    comm = bytes(process.comm).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    return Process(process.pid, comm, process.uid, process.cgroup_id)


def origin_of(origin: nono_origin) -> FlowOrigin:
    """Host byte order, no ctypes inside."""
    destination = origin.destination
    endpoint = Endpoint(unpacked(destination.addr), socket.ntohs(destination.port_be))
    return FlowOrigin(endpoint, process_of(origin.process))
