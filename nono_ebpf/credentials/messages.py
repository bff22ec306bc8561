"""What the proxy asks the broker, and what it is told. One message is one packet of a SOCK_SEQPACKET socket.

An answer is the length of its head, the head, and behind it the bytes of the secret, so that these can be sent from
where they are kept, and be received where they can be overwritten.
"""

from __future__ import annotations

import struct
import time
from typing import Annotated, Final

import msgspec

from nono_ebpf.credentials.secret import MAX_BYTES

_LENGTH = struct.Struct("=H")
REQUEST_MAX: Final = 64
ANSWER_MAX: Final = MAX_BYTES + 4096
VALUE, UNCHANGED = "value", "unchanged"
_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]


class Greeting(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the broker says first: the credentials, by number, and the longest a source may take (None: forever)."""

    names: tuple[str, ...]
    deadline_s: float | None


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Credential `index` is wanted as it is now. `version`: of what the asker has; 0 for nothing."""

    id: _Number
    index: _Number
    version: _Number


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`state`: VALUE (it follows, and has `version`), UNCHANGED, or why there is none: of `name`, with a `problem`.

    `until_s`, on the clock of `now_s`: before, the answer to the same question is UNCHANGED.
    """

    id: _Number
    state: str
    version: _Number = 0
    name: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    problem: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    until_s: float = 0.0


def now_s() -> float:
    """The time for both sides. It goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def greeting(data: bytes) -> Greeting | None:
    """None: it is no greeting."""
    try:
        return msgspec.msgpack.decode(data, type=Greeting)
    except msgspec.DecodeError:
        return None


def encoded(message: Greeting | Request) -> bytes:
    """As it is sent."""
    return msgspec.msgpack.encode(message)


def request(data: bytes) -> Request | None:
    """None: it is no request."""
    try:
        return msgspec.msgpack.decode(data, type=Request)
    except msgspec.DecodeError:
        return None


def head(answer: Answer) -> bytes:
    """What stands before the secret."""
    body = msgspec.msgpack.encode(answer)
    return _LENGTH.pack(len(body)) + body


def split(data: memoryview) -> tuple[Answer, memoryview] | None:
    """An answer, and the secret as a part of `data`; None: it is no answer."""
    if len(data) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    try:
        return msgspec.msgpack.decode(data[_LENGTH.size : end], type=Answer), data[end:]
    except msgspec.DecodeError:
        return None
