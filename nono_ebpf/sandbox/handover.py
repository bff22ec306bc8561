"""What the supervisor hands the proxy when all is in place: a plan and the fds that go with it, over one socket.

The socket then is the proxy's lifeline: "stop" is an orderly end, its closing the supervisor's death.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from nono_ebpf.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Sequence

READY, STOP = b"ready", b"stop"
_LENGTH = struct.Struct("=QI")
_FDS_MAX = 16


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
    upstream_ca: bytes | None  # PEM, what it may be verified by besides the system's roots

    def __repr__(self) -> str:
        return f"ProxyPlan({self.sandbox})"  # two of these are secrets


def send(channel: socket.socket, plan: ProxyPlan, fds: Sequence[int]) -> None:
    """The fds stay the caller's."""
    body = msgspec.msgpack.encode(plan)
    socket.send_fds(channel, [_LENGTH.pack(len(body), len(fds))], list(fds))
    channel.sendall(body)


def receive(channel: socket.socket) -> tuple[ProxyPlan, list[int]]:
    """The fds are the caller's now.

    Raises:
        SandboxError: the supervisor ended before it had a plan.
    """
    head, fds, _, _ = socket.recv_fds(channel, _LENGTH.size, _FDS_MAX)
    if len(head) < _LENGTH.size:
        raise SandboxError("the supervisor ended while it started the proxy")
    length, count = _LENGTH.unpack(head)
    body = bytearray()
    while len(body) < length and (chunk := channel.recv(length - len(body))):
        body += chunk
    if len(body) < length or len(fds) != count:
        raise SandboxError("the supervisor's plan arrived in part")
    return msgspec.msgpack.decode(bytes(body), type=ProxyPlan), fds
