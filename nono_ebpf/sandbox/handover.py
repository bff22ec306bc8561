"""What the supervisor hands the proxy when all is in place: a plan and the fds that go with it, over one socket.

The proxy answers "ready" and, if it is to end TLS, the certificate (PEM) that the sandbox is to trust. The socket then
is the proxy's lifeline: "stop" is an orderly end, its closing the supervisor's death.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from nono_ebpf.credentials.injection import Injection  # noqa: TC001  # msgspec reads the annotations
from nono_ebpf.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Sequence

READY, STOP = b"ready", b"stop"
_LENGTH = struct.Struct("=QI")
_SIZE = struct.Struct("=I")
_FDS_MAX = 16


class ServicePlan(msgspec.Struct, frozen=True):
    """How requests to one service are made its own. What is PEM is for its host alone."""

    name: str
    injection: Injection
    rate_limit: tuple[int, int, int] | None = None  # requests a minute, at once, seconds that one may wait
    tls_ca: bytes | None = None
    tls_client_cert: bytes | None = None
    tls_client_key: bytes | None = None

    def __repr__(self) -> str:
        return f"ServicePlan({self.name})"  # it may have a key


class InterceptionPlan(msgspec.Struct, frozen=True):
    """Whose TLS ends at the proxy: `hosts` are patterns. `ca` and `ca_key` (PEM) are the operator's, or not given."""

    hosts: tuple[str, ...]
    ca_validity_s: int
    leaf_validity_s: int
    ca: bytes | None = None
    ca_key: bytes | None = None

    def __repr__(self) -> str:
        return f"InterceptionPlan({self.hosts})"


class ProxyPlan(msgspec.Struct, frozen=True):
    """Everything the proxy process is told."""

    sandbox: str
    uid: int
    policy: bytes
    pinned: dict[str, list[str]]  # name → addresses, from --resolve
    netns_cookie: int
    verbose: bool
    has_audit_log: bool
    token: str
    upstream_authorization: bytes | None  # the value of Proxy-Authorization for the upstream proxy
    upstream_tls: bool
    upstream_ca: bytes | None  # PEM, what it and other hosts may be verified by besides the system's roots
    interception: InterceptionPlan | None = None
    services: tuple[ServicePlan, ...] = ()  # with any, there is a socket to the broker

    def __repr__(self) -> str:
        return f"ProxyPlan({self.sandbox})"  # two of these are secrets


def send(channel: socket.socket, plan: ProxyPlan, fds: Sequence[int]) -> None:
    """The fds stay the caller's."""
    body = msgspec.msgpack.encode(plan)
    socket.send_fds(channel, [_LENGTH.pack(len(body), len(fds))], list(fds))
    channel.sendall(body)


def answer(channel: socket.socket, certificate: bytes) -> None:
    """The proxy serves; the `certificate` (PEM) is what the sandbox is to trust."""
    channel.sendall(READY + _SIZE.pack(len(certificate)) + certificate)


def receive_answer(channel: socket.socket) -> bytes | None:
    """What the proxy answered; None when it ended instead."""
    head = _receive_exactly(channel, len(READY) + _SIZE.size)
    if not head.startswith(READY):
        return None
    (size,) = _SIZE.unpack(head[len(READY) :])
    certificate = _receive_exactly(channel, size)
    return certificate if len(certificate) == size else None


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    """Less, when the sender ended."""
    data = bytearray()
    while len(data) < size and (chunk := channel.recv(size - len(data))):
        data += chunk
    return bytes(data)


def receive(channel: socket.socket) -> tuple[ProxyPlan, list[int]]:
    """The fds are the caller's now.

    Raises:
        SandboxError: the supervisor ended before it had a plan.
    """
    head, fds, _, _ = socket.recv_fds(channel, _LENGTH.size, _FDS_MAX)
    if len(head) < _LENGTH.size:
        raise SandboxError("the supervisor ended while it started the proxy")
    length, count = _LENGTH.unpack(head)
    body = _receive_exactly(channel, length)
    if len(body) < length or len(fds) != count:
        raise SandboxError("the supervisor's plan arrived in part")
    return msgspec.msgpack.decode(body, type=ProxyPlan), fds
