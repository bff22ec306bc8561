"""What the supervisor hands the broker, and what it hears back, over the socket that is the broker's lifeline.

The secrets among it (variables of the caller) are decoded in place, as views of a buffer that the broker overwrites.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal

import msgspec

from nono_ebpf.errors import SandboxError

STOP = b"stop"
_LENGTH = struct.Struct("=I")

Availability = Literal["present", "waiting", "missing", "lazy"]


class BrokerCredential(msgspec.Struct, frozen=True):
    """A credential that requests may need, and the reference to it as it was written."""

    name: str
    reference: str


class BrokerPlan(msgspec.Struct, frozen=True):
    """Everything the broker is told. `uid` and `gid`: of the account the command runs as, whose files are taken; with
    `as_account`, also whose rights everything is read with.
    """

    credentials: tuple[BrokerCredential, ...]
    uid: int
    gid: int
    groups: tuple[int, ...]
    as_account: bool
    shared_ok: bool  # files may be open to other accounts
    environment: dict[bytes, bytes]
    variables: dict[bytes, memoryview]  # those that are credentials

    def __repr__(self) -> str:
        return f"BrokerPlan({', '.join(each.name for each in self.credentials)})"


class CredentialState(msgspec.Struct, frozen=True):
    """What is known of a credential at the start.

    `availability`: "present"; "waiting", a file that cannot be used yet; "missing", a variable that is not there and
    never will be; "lazy", read when a request needs it. `state` and `problem` say why.
    """

    name: str
    reference: str  # redacted
    availability: Availability
    state: str = ""
    problem: str = ""


class BrokerReport(msgspec.Struct, frozen=True):
    """The broker serves. `locked`: what it holds stays out of swap."""

    states: tuple[CredentialState, ...]
    locked: bool


def send(channel: socket.socket, message: BrokerPlan | BrokerReport, fds: tuple[int, ...] = ()) -> None:
    """The fds stay the caller's."""
    body = bytearray()
    msgspec.msgpack.Encoder().encode_into(message, body)
    socket.send_fds(channel, [_LENGTH.pack(len(body))], list(fds))
    channel.sendall(body)
    body[:] = bytes(len(body))


def receive_plan(channel: socket.socket) -> tuple[BrokerPlan, bytearray, int]:
    """The plan, the buffer that its variables are views of, and the fd that requests come from: the caller's now.

    Raises:
        SandboxError: the supervisor ended before it had a plan.
    """
    head, fds, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    if len(head) < _LENGTH.size or len(fds) != 1:
        raise SandboxError("the supervisor ended while it started the broker")
    body = _received(channel, _LENGTH.unpack(head)[0])
    return msgspec.msgpack.decode(body, type=BrokerPlan), body, fds[0]


def receive_report(channel: socket.socket) -> BrokerReport:
    """Raises SandboxError: the broker ended before it served."""
    head = _received(channel, _LENGTH.size)
    return msgspec.msgpack.decode(_received(channel, _LENGTH.unpack(head)[0]), type=BrokerReport)


def _received(channel: socket.socket, length: int) -> bytearray:
    body, there = bytearray(length), 0
    while there < length and (got := channel.recv_into(memoryview(body)[there:])):
        there += got
    if there < length:
        raise SandboxError("the broker process could not start; its message is above")
    return body
