"""What a ClientHello says, however it is cut, and what is refused."""

from __future__ import annotations

import ssl

import pytest
from kit.hellos import (
    ENCRYPTED_CLIENT_HELLO,
    SUPPORTED_GROUPS,
    alpn,
    client_hello,
    extension,
    message,
    records,
    server_name,
    vector,
)

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.tls_hello import (
    MAX_HELLO_BYTES,
    MAX_HELLO_RECORDS,
    NOT_TLS,
    ClientHello,
    begins_as_tls,
    parse_client_hello,
)

GREASE = extension(0x1A1A, b"\0")
HELLO = client_hello("A.Test.", GREASE, alpn(b"h2", b"http/1.1"))
PARSED = ClientHello(sni="a.test", alpn=(b"h2", b"http/1.1"), ech=False)


def real_hello(name: str) -> bytes:
    """What this machine's OpenSSL sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_whole_hello() -> None:
    """Name in canonical form, ALPN offers in order, unknown extensions ignored."""
    assert parse_client_hello(HELLO) == PARSED


def test_hello_of_a_real_client() -> None:
    """OpenSSL's own hello is understood."""
    assert parse_client_hello(real_hello("www.example.com")) == ClientHello("www.example.com", (b"h2",), ech=False)


def test_byte_by_byte() -> None:
    """Every shorter prefix needs more, and the last byte completes it."""
    for size in range(len(HELLO)):
        assert parse_client_hello(HELLO[:size]) is NEED_MORE
    assert parse_client_hello(bytearray(HELLO)) == PARSED


def test_bytes_behind_the_hello_are_left_alone() -> None:
    """Early data in records of its own changes nothing."""
    assert parse_client_hello(HELLO + b"\x17\x03\x03\x00\x01x") == PARSED


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1, 1], [3], [4], [5], [40, 1], [1] * 60])
def test_spread_over_records(sizes: list[int]) -> None:
    """Any fragmentation has the meaning of the whole message."""
    handshake = message((server_name(b"a.test"), alpn(b"h2", b"http/1.1")))
    assert parse_client_hello(records(handshake, sizes)) == PARSED


def test_large_hello_over_several_full_records() -> None:
    """A hello of more than one full record is read whole."""
    handshake = message((server_name(b"a.test"), extension(21, bytes(40_000))))
    parsed = parse_client_hello(records(handshake, [16384, 16384]))
    assert parsed == ClientHello("a.test", (), ech=False)


def test_without_server_name() -> None:
    """No extensions at all, or none that names a host: the name is None."""
    assert parse_client_hello(records(message(None))) == ClientHello(None, (), ech=False)
    assert parse_client_hello(client_hello(None, GREASE)) == ClientHello(None, (), ech=False)


def test_encrypted_client_hello_is_reported() -> None:
    """ECH, real or GREASE, is seen; the outer name counts."""
    hello = client_hello("a.test", extension(ENCRYPTED_CLIENT_HELLO, bytes(60)))
    assert parse_client_hello(hello) == ClientHello("a.test", (), ech=True)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x02\x00", b"\x80\x2e\x01", b"SSH-2.0-x", b"\0"])
def test_not_tls(data: bytes) -> None:
    """What cannot be a TLS handshake record is told at once."""
    assert parse_client_hello(data) is NOT_TLS
    assert not begins_as_tls(data)


def test_nothing_yet() -> None:
    """No byte, or one, could still become anything."""
    assert parse_client_hello(b"") is NEED_MORE
    assert parse_client_hello(b"\x16") is NEED_MORE
    assert not begins_as_tls(b"\x16")
    assert begins_as_tls(b"\x16\x03")


def names_list(body: bytes) -> bytes:
    return records(message((extension(0, body),)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(records(b"\x02" + vector(3, b"x")), id="server hello"),
        pytest.param(b"\x16\x03\x01\x00\x00", id="empty record"),
        pytest.param(b"\x16\x03\x01\x40\x01", id="record larger than 2^14"),
        pytest.param(records(message((extension(10, b"xx")[:-1],))), id="length past the end"),
        pytest.param(records(message(()), [10])[:15] + b"\x17\x03\x03", id="another record type inside"),
        pytest.param(records(message(()), [10])[:15] + b"\x16\x04", id="another version inside"),
        pytest.param(records(message(()) + b"\x01"), id="a second message in the record"),
        pytest.param(records(b"\x01" + vector(3, message(())[4:] + b"x")), id="bytes behind the extensions"),
        pytest.param(client_hello("a.test", server_name(b"b.test")), id="server_name twice"),
        pytest.param(client_hello("a.test", GREASE, GREASE), id="any extension twice"),
        pytest.param(records(message((server_name(b"a.test", b"b.test"),))), id="two names"),
        pytest.param(records(message((server_name(b"a.test", kind=1),))), id="unknown name type"),
        pytest.param(names_list(b""), id="empty server_name"),
        pytest.param(names_list(b"\0\0"), id="empty name list"),
        pytest.param(names_list(vector(2, b"\0\0\x01a") + b"x"), id="bytes behind the name list"),
        pytest.param(names_list(vector(2, b"\0\0\x02a")), id="name longer than its list"),
        pytest.param(client_hello(""), id="empty name"),
        pytest.param(client_hello("a\0.test"), id="NUL in the name"),
        pytest.param(client_hello("a b.test"), id="blank in the name"),
        pytest.param(records(message((server_name(b"\xc3\xbc.test"),))), id="name that is not ASCII"),
        pytest.param(client_hello("0x7f.1"), id="name that is an odd address"),
        pytest.param(client_hello(None, extension(16, vector(2, b"\0"))), id="empty ALPN offer"),
        pytest.param(client_hello(None, extension(16, vector(2, b"\x09h2"))), id="ALPN past the end"),
        pytest.param(client_hello(None, alpn()), id="no ALPN offer"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01" + (MAX_HELLO_BYTES).to_bytes(3, "big"), id="over the bound"),
        pytest.param(records(message((server_name(b"a.test"),)), [1] * 2)[:5] + b"\x05", id="first byte wrong"),
    ],
)
def test_malformed(data: bytes) -> None:
    """What began as TLS and has more or less than one meaning is refused, never taken for something else."""
    with pytest.raises(ClientProtocolError):
        parse_client_hello(data)


def test_too_many_records() -> None:
    """The number of records that one hello may be spread over is bounded."""
    handshake = message((extension(SUPPORTED_GROUPS, bytes(2 * MAX_HELLO_RECORDS)),))
    with pytest.raises(ClientProtocolError, match="records"):
        parse_client_hello(records(handshake, [1] * MAX_HELLO_RECORDS))


def test_odd_session_id_and_suites() -> None:
    """Vectors with impossible lengths are refused (RFC 8446 §4.1.2)."""
    for body in (
        b"\x03\x03" + bytes(32) + vector(1, bytes(33)) + vector(2, b"\x13\x01") + b"\x01\0",
        b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13") + b"\x01\0",
        b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"") + b"\x01\0",
        b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01") + b"\0",
        b"\x03\x03" + bytes(20),
    ):
        with pytest.raises(ClientProtocolError):
            parse_client_hello(records(b"\x01" + vector(3, body)))
