"""Which language a client speaks."""

from __future__ import annotations

import pytest
from kit.hellos import client_hello

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.sniff import MAX_FIRST_LINE_BYTES, Http, Opaque, Sniffed, Tls, classify
from nono_ebpf.wire.tls_hello import ClientHello

CASES: list[tuple[bytes, Sniffed]] = [
    (client_hello("a.test"), Tls(ClientHello("a.test", (), ech=False))),
    (b"GET / HTTP/1.1\r\n", Http()),
    (b"GET / HTTP/1.0\r\n", Http()),
    (b"M-SEARCH * HTTP/1.1\r\n", Http()),
    (b"POST http://a.test/ HTTP/1.1\r\n", Http()),
    # Malformed, but some servers obey: the strict parser has to see and refuse these.
    (b"GET / HTTP/1.1\n", Http()),
    (b"GET  /  HTTP/1.1 \r\n", Http()),
    (b"GET\t/\tHTTP/1.1\r\n", Http()),
    (b"GET /a b HTTP/1.1\r\n", Http()),
    (b"GET /\xc3\xbc HTTP/1.1\r\n", Http()),
    (b"GET foo\r\n", Opaque()),
    (b"PING\r\n", Opaque()),
    (b"*1\r\n$4\r\nPING\r\n", Opaque()),
    (b"get key\r\n", Opaque()),
    (b"CONNECT\naccept-version:1.2\n", Opaque()),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Opaque()),
    (b"SSH-2.0-OpenSSH_9.6\r\n", Opaque()),
    (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Opaque()),
    (b"hello", Opaque()),
    (b" GET / HTTP/1.1\r\n", Http()),
    (b"\r\n\r\nGET / HTTP/1.1\r\n", Http()),
    (b"\nGET / HTTP/1.1\r\n", Http()),
    (b"GET \x01 HTTP/1.1\r\n", Http()),
    (b"GET\x0b/\x0cHTTP/1.1\r\n", Http()),
    (b"GET / HTTP/2.0\r\n", Http()),
    (b"GET / http/1.1\r\n", Http()),
    (b"GET /x\r\n", Http()),
    (b"GET  http://a.test/x\n", Http()),
    (b"GET /x RTSP/1.0\r\n", Http()),
    (b"OPTIONS rtsp://a.test/x RTSP/1.0\r\n", Opaque()),
    (b"\r\nPING\r\n", Opaque()),
    (b"\x01GET / HTTP/1.1\r\n", Opaque()),
    (b"{}", Opaque()),
]


@pytest.mark.parametrize(("data", "expected"), CASES)
def test_language(data: bytes, expected: Sniffed) -> None:
    """Each opening has one language, also with anything behind it."""
    assert classify(data) == expected
    assert classify(data + b"whatever\r\n\0") == expected


@pytest.mark.parametrize(("data", "expected"), CASES)
def test_byte_by_byte(data: bytes, expected: Sniffed) -> None:
    """A prefix is either undecided or already of the same language."""
    for size in range(len(data)):
        assert classify(bytearray(data[:size])) in (NEED_MORE, expected)


def test_undecided() -> None:
    """A first word and an open line could still become a request."""
    for data in (b"", b"\x16", b"GET", b"GET /", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r", b"PING", b"\r\n", b"\r\nGET"):
        assert classify(data) is NEED_MORE


@pytest.mark.parametrize("data", [b"get / HTTP/1.1\r\n", b"Get / HTTP/1.1\r\n"])
def test_a_whole_line_in_lower_case_is_for_the_strict_parser(data: bytes) -> None:
    """It is a request, and so is it in pieces: some servers read it as one."""
    assert classify(data) == Http()
    for size in range(len(data)):
        assert classify(data[:size]) is NEED_MORE


@pytest.mark.parametrize("data", [b"hello", b"getx", b"gets /", b"proph", b"user", b"\r\nquit"])
def test_other_words_in_lower_case_are_not_waited_for(data: bytes) -> None:
    """A client may open with one and wait."""
    assert classify(data) == Opaque()


def test_endless_first_line_is_refused() -> None:
    """A request line has a bound, and reaching it is the client's error."""
    line = b"GET /" + b"x" * MAX_FIRST_LINE_BYTES
    assert classify(line[: MAX_FIRST_LINE_BYTES - 1]) is NEED_MORE
    for tail in (b"", b" HTTP/1.1\r\n"):
        with pytest.raises(ClientProtocolError) as caught:
            classify(line + tail)
        assert caught.value.status == 414
