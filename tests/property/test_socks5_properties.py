"""SOCKS5 streams of every shape: grammar first, then mutated, then cut."""

from __future__ import annotations

from fuzz.socks5 import check, handshake
from hypothesis import example, given
from hypothesis import strategies as st

from nono_ebpf.authority import Authority
from nono_ebpf.wire.socks5 import Login

octets = st.binary(max_size=255)
labels = st.from_regex(r"[a-z]([a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
ports = st.integers(1, 65535)
tails = st.binary(max_size=20)


def vector(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def stream(methods: bytes, user: bytes, password: bytes, host: str, port: int) -> bytes:
    login = b"\x01" + vector(user) + vector(password)
    return b"\x05" + vector(methods) + login + b"\x05\x01\x00\x03" + vector(host.encode()) + port.to_bytes(2, "big")


@given(octets, octets, octets, hosts, ports, tails, st.integers(1, 600))
def test_what_was_written_is_read(
    methods: bytes, user: bytes, password: bytes, host: str, port: int, tail: bytes, step: int
) -> None:
    """Any handshake, in pieces of any size, says what was put into it, and leaves what stands behind it."""
    data = stream(methods, user, password, host, port) + tail
    expected = (set(methods), Login(user, password), Authority(host, port), tail)
    assert handshake(data, step) == expected


@given(hosts, ports, tails, st.integers(0, 100), st.integers(0, 255))
def test_mutation_is_refused_or_understood(host: str, port: int, tail: bytes, where: int, value: int) -> None:
    """A changed byte gives an answer or the documented error, and cutting the stream changes neither."""
    data = bytearray(stream(b"\x00\x02", b"nono", b"s3cret", host, port) + tail)
    data[where % len(data)] = value
    check(bytes(data))


@given(st.binary(max_size=600))
@example(b"\x05\x01\x00\x03\x00\x01\xbb")
@example(b"\x05\x01\x00\x04" + b"\0" * 10 + b"\xff\xff\0\0\0\0\0\1")
def test_arbitrary_bytes(data: bytes) -> None:
    """Anything is understood, waited for within a bound, or refused as documented."""
    check(data)
    check(b"\x05\x01\x02\x01\x01a\x01b" + data)
