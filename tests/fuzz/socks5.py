"""A SOCKS5 client's messages have one reading, however they are cut, and a host in them is one that could be judged.

Only ClientProtocolError comes out, and NEED_MORE has a bound. What is accepted says the same when it is written anew;
a whole handshake, taken message by message, leaves the bytes behind it as they were.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from fuzz.prefixes import check_cuts

from nono_ebpf.authority import Authority, canonical_host, host_address
from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.socks5 import Login, Reply, parse_greeting, parse_login, parse_request, reply_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Parse = Callable[[bytes | bytearray], object]

# RFC 1928 §3 and §5, RFC 1929 §2: the fields in front, and 255 bytes for each that has a length.
_LONGEST: dict[Parse, int] = {parse_greeting: 2 + 255, parse_login: 2 + 255 + 1 + 255, parse_request: 5 + 255 + 2}


def check(data: bytes) -> None:
    """Judge `data` as each message, and as all of them in a row."""
    for parse, longest in _LONGEST.items():
        verdict = check_cuts(data, lambda prefix, parse=parse: outcome(parse, prefix))
        assert verdict is not NEED_MORE or len(data) < longest
        if isinstance(verdict, tuple):
            _check_meaning(*verdict, data)
    assert handshake(data, len(data) or 1) == handshake(data, 1)


def seeds() -> Iterator[bytes]:
    """Every message, alone and in a row, and those of other protocols."""
    greeting, login = b"\x05\x02\x00\x02", b"\x01\x04nono\x06s3cret"
    requests = (
        b"\x05\x01\x00\x03\x06a.test\x01\xbb",
        b"\x05\x01\x00\x03\x0bEVIL\0.a.test\x00\x50",
        b"\x05\x01\x00\x03\x05[::1]\x00\x50",
        b"\x05\x01\x00\x01\xcb\x00\x71\x07\x00\x16",
        b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\x7f\x00\x00\x01\xff\xff",
        b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00",
        b"\x05\x01\x01\x01",
    )
    yield from (greeting, login, *requests)
    yield from (greeting + login + request + b"\x16\x03\x01" for request in requests)
    yield from (
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
        b"CONNECT a.test:443 HTTP/1.1\r\n\r\n",
        b"\x05\xff" + bytes(300),
    )


def outcome(parse: Parse, data: bytes | bytearray) -> object:
    """What the parser makes of `data`, errors included."""
    try:
        return parse(data)
    except ClientProtocolError as error:
        problem = str(error)
    assert problem.isprintable()
    return ClientProtocolError


def handshake(data: bytes, step: int) -> tuple[object, ...]:
    """What a reader that gets `step` bytes at a time makes of a client's stream, and what it leaves of it."""
    buffer, messages = bytearray(), []
    pending = list(_LONGEST)
    for start in range(0, len(data), step):
        buffer += data[start : start + step]
        while pending and (found := outcome(pending[0], buffer)) is not NEED_MORE:
            if not isinstance(found, tuple):
                return (*messages, found)
            message, size = found
            messages.append(message)
            del buffer[:size], pending[0]
            if isinstance(message, Reply):
                return tuple(messages)
    return (*messages, bytes(buffer))


def _check_meaning(message: object, size: int, data: bytes) -> None:
    assert size <= len(data)
    match message:
        case Authority(host, port):
            assert canonical_host(host) == host
            assert 0 < port < 65536
            assert parse_request(_request(host, port)) == (message, len(_request(host, port)))
        case Login(username, password):
            assert bytes((1, len(username))) + username + bytes((len(password),)) + password == data[:size]
        case Reply():
            assert reply_bytes(message)[1] == message != Reply.SUCCEEDED
        case methods:
            assert methods == set(data[2:size])


def _request(host: str, port: int) -> bytes:
    address = host_address(host)
    if address is None:
        kind = bytes((3, len(host))) + host.encode("ascii")
    else:
        kind = (b"\x04" if address.version == 6 else b"\x01") + ip_address(host).packed
    return b"\x05\x01\x00" + kind + port.to_bytes(2, "big")
