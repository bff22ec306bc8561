"""SOCKS5 messages: what is read, what is refused, what is written."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.socks5 import Login, Reply, parse_greeting, parse_login, parse_request, reply_bytes

if TYPE_CHECKING:
    from collections.abc import Callable


def to_name(name: bytes, port: int = 443) -> bytes:
    return b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")


def to_address(text: str, port: int = 443) -> bytes:
    address = ip_address(text)
    return b"\x05\x01\x00" + (b"\x04" if address.version == 6 else b"\x01") + address.packed + port.to_bytes(2, "big")


MESSAGES: list[tuple[Callable[..., object], bytes, object]] = [
    (parse_greeting, b"\x05\x01\x02", {2}),
    (parse_greeting, b"\x05\x03\x00\x01\x02", {0, 1, 2}),
    (parse_greeting, b"\x05\x00", set()),
    (parse_greeting, b"\x05\xff" + bytes(range(255)), set(range(255))),
    (parse_login, b"\x01\x04nono\x03abc", Login(b"nono", b"abc")),
    (parse_login, b"\x01\x00\x01x", Login(b"", b"x")),
    (parse_login, b"\x01\xff" + b"u" * 255 + b"\xff" + b"\0" * 255, Login(b"u" * 255, b"\0" * 255)),
]
REQUESTS = [
    (to_name(b"a.test"), "a.test:443"),
    (to_name(b"A.Test.", 1), "a.test:1"),
    (to_name(b"203.0.113.7", 65535), "203.0.113.7:65535"),
    (to_name(b"2001:DB8::7"), "[2001:db8::7]:443"),
    (to_name(b"xn--mnchen-3ya.de"), "xn--mnchen-3ya.de:443"),
    (to_address("203.0.113.7"), "203.0.113.7:443"),
    (to_address("2001:db8::7", 80), "[2001:db8::7]:80"),
    (to_address("::ffff:203.0.113.7", 80), "203.0.113.7:80"),
    (to_address("0.0.0.0"), "0.0.0.0:443"),
]


@pytest.mark.parametrize(("parse", "message", "meaning"), MESSAGES)
def test_a_message(parse: Callable[..., object], message: bytes, meaning: object) -> None:
    """Read whole, with anything behind it, and not before it is whole."""
    assert parse(message) == (meaning, len(message))
    assert parse(bytearray(message + b"\x05\x16\x03")) == (meaning, len(message))
    for size in range(len(message)):
        assert parse(message[:size]) is NEED_MORE


@pytest.mark.parametrize(("message", "authority"), REQUESTS, ids=[authority for _, authority in REQUESTS])
def test_a_request(message: bytes, authority: str) -> None:
    """Names and addresses have the one form that they have everywhere; bytes behind it belong to the tunnel."""
    for tail in (b"", b"\x16\x03\x01"):
        wanted = parse_request(bytearray(message + tail))
        assert wanted is not NEED_MORE
        assert (str(wanted[0]), wanted[1]) == (authority, len(message))
    for size in range(len(message)):
        assert parse_request(message[:size]) is NEED_MORE


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (b"\x05\x02", Reply.COMMAND_NOT_SUPPORTED),  # BIND
        (b"\x05\x03", Reply.COMMAND_NOT_SUPPORTED),  # UDP ASSOCIATE
        (b"\x05\x00", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\xf0", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x01\x00\x00", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (b"\x05\x01\x00\x02", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (b"\x05\x01\x00\x05", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ],
)
def test_what_is_not_served(message: bytes, reply: Reply) -> None:
    """Other commands and kinds of addresses have a reply of their own, as soon as they are seen."""
    for tail in (b"", b"\x00\x01\x7f\x00\x00\x01\x01\xbb"):
        assert parse_request(message + tail) == (reply, len(message))


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (parse_greeting, b"\x04\x01\x00"),
        (parse_greeting, b"\x00"),
        (parse_greeting, b"GET"),
        (parse_login, b"\x05\x01a\x01b"),
        (parse_login, b"\x00"),
        (parse_request, b"\x04\x01"),
        (parse_request, b"\x05\x01\x01"),
        (parse_request, to_address("203.0.113.7", 0)),
        (parse_request, to_name(b"a.test", 0)),
    ],
)
def test_malformed(parse: Callable[..., object], message: bytes) -> None:
    """Another version, a reserved octet that is used, port 0."""
    for tail in (b"", b"\0" * 20):
        with pytest.raises(ClientProtocolError):
            parse(message + tail)


@pytest.mark.parametrize(
    "name",
    [
        b"", b".", b"a..b", b"-a.test", b"a.test\0", b"evil.test\0.a.test", b"[::1]", b"[a.test]", b"a.test:443",
        b"a b", b"fe80::1%lo", b"::1%25lo", b"127.1", b"0x7f.0.0.1", b"2130706433", b"1.2.3.04", b"a@b", b"a/b",
        b"a.test\r\n", b"*", b"*.test", "münchen.de".encode(), "münchen.de".encode("latin-1"), b"\xff",
        b"a" * 64, b"a." * 127 + b"a",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_host(name: bytes) -> None:
    """A name with more than one reading, or none, is refused as it is everywhere; brackets and bytes are no name."""
    with pytest.raises(ClientProtocolError) as caught:
        parse_request(to_name(name))
    assert len(str(caught.value)) < 1200
    assert str(caught.value).isprintable()


def test_replies() -> None:
    """A reply says nothing of where we dial from (RFC 1928 §6)."""
    assert reply_bytes(Reply.SUCCEEDED) == b"\x05\x00\x00\x01\0\0\0\0\0\0"
    assert reply_bytes(Reply.ADDRESS_TYPE_NOT_SUPPORTED) == b"\x05\x08\x00\x01\0\0\0\0\0\0"


def test_a_login_shows_no_password() -> None:
    """Neither `repr` nor `str` of one has it."""
    login = Login(b"nono", b"s3cret")
    assert "s3cret" not in f"{login!r} {login}"
