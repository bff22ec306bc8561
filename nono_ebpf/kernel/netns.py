"""The sandbox's network namespace: only `lo`, no route, listeners of ours inside. network_namespaces(7)."""

from __future__ import annotations

import secrets
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from nono_ebpf.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Collection

SO_NETNS_COOKIE = 71  # asm-generic/socket.h, kernel 5.14

# getaddrinfo's AI_ADDRCONFIG answers nothing in a namespace that has loopback addresses only.
OWN_V4 = IPv4Address("198.18.0.1")
OWN_V6 = IPv6Address("fd6e:6f6e:6f00::1")

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn
_PORT_ATTEMPTS = 64
# Where the kernel puts sockets without a port of their own, so that no server inside misses its port; else anywhere.
_PORT_RANGES = (range(32768, 61000), range(54, 65536))


@dataclass(frozen=True, slots=True)
class Listeners:
    """Sockets inside the sandbox's namespace, IPv4 and IPv6 on the same port. The holder owns the fds."""

    proxy: tuple[socket.socket, socket.socket]
    dns_tcp: tuple[socket.socket, socket.socket]
    dns_udp: tuple[socket.socket, socket.socket]

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.all:
            sock.close()

    @property
    def all(self) -> tuple[socket.socket, ...]:
        """In the order in which they travel to the proxy."""
        return (*self.proxy, *self.dns_tcp, *self.dns_udp)

    @classmethod
    def of(cls, sockets: list[socket.socket]) -> Listeners:
        """The inverse of `all`."""
        p4, p6, t4, t6, u4, u6 = sockets
        return cls((p4, p6), (t4, t6), (u4, u6))

    @property
    def proxy_port(self) -> int:
        """TCP port of the proxy."""
        return int(self.proxy[0].getsockname()[1])

    @property
    def dns_port(self) -> int:
        """UDP and TCP port of the resolver."""
        return int(self.dns_udp[0].getsockname()[1])

    @property
    def netns_cookie(self) -> int:
        """The kernel's name for the namespace that the listeners are in."""
        raw = self.proxy[0].getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        return int(struct.unpack("=Q", raw)[0])


def bring_up_loopback() -> None:
    """Configure `lo` of the current namespace."""
    from pyroute2 import IPRoute  # 80 ms, in the one process that needs it

    with IPRoute() as route:
        index = route.link_lookup(ifname="lo")[0]
        route.link("set", index=index, state="up")
        route.addr("add", index=index, address=str(OWN_V4), prefixlen=32)
        route.addr("add", index=index, address=str(OWN_V6), prefixlen=128)


def _bound(family: int, kind: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    return sock


def _pair(kind: int, port: int) -> tuple[socket.socket, socket.socket]:
    first = _bound(socket.AF_INET, kind, "127.0.0.1", port)
    try:
        return first, _bound(socket.AF_INET6, kind, "::1", port)
    except OSError:
        first.close()
        raise


def _two_ports(avoid: Collection[int]) -> list[int]:
    for ports in _PORT_RANGES:
        free = [port for port in ports if port not in avoid]
        if len(free) >= 2:
            return secrets.SystemRandom().sample(free, 2)
    raise SandboxError("every port of loopback is opened to the host, and none is left for the sandbox's own proxy")


def open_listeners(avoid: Collection[int] = frozenset()) -> Listeners:
    """Open them in the current namespace. Their cgroup, which the origin hook looks at, is the caller's.

    `avoid`: ports of loopback that mean the host's, which nobody could tell from a listener of ours.
    """
    for _ in range(_PORT_ATTEMPTS):
        proxy_port, dns_port = _two_ports(avoid)
        opened: list[socket.socket] = []
        try:
            opened += _pair(socket.SOCK_STREAM, proxy_port)
            opened += _pair(socket.SOCK_DGRAM, dns_port)
            opened += _pair(socket.SOCK_STREAM, dns_port)
        except OSError:  # a port that one family has free and the other has not
            for sock in opened:
                sock.close()
            continue
        p4, p6, u4, u6, t4, t6 = opened
        for sock in (p4, p6, t4, t6):
            sock.listen(BACKLOG)
        return Listeners((p4, p6), (t4, t6), (u4, u6))
    raise SandboxError("no port is free on both loopback addresses of a new network namespace")
