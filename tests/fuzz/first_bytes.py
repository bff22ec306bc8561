"""What any HTTP/1 reader takes for a request is never opaque, and TLS is TLS, however the first bytes are cut.

Only ClientProtocolError comes out, and NEED_MORE has a bound. What our strict parser, or h11 with its leave to be
liberal, reads as a request goes to the strict parser.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h11
from fuzz import client_hello, http1_request
from fuzz.http1_reading import H11_HEAD_BYTES, h11_reads, request_head
from fuzz.prefixes import cuts

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.sniff import MAX_FIRST_LINE_BYTES, Http, Opaque, Tls, classify
from nono_ebpf.wire.tls_hello import ClientHello, parse_client_hello

if TYPE_CHECKING:
    from collections.abc import Iterator

# `classify` does not wait for the rest of a line that begins with a word in lower case, unless that is one of the
# common methods: cut inside the word, or behind it, the answer is Opaque, and whole it may be Http.
_NOT_WAITED_FOR = re.compile(rb"[ \t\r\n\x0b\x0c]*[^ \t\r\n\x0b\x0c]*[^!#$%&'*+.^_`|~0-9A-Z \t\r\n\x0b\x0c-]")
_METHOD = re.compile(rb"\s*(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT)\s", re.IGNORECASE)


def check(data: bytes) -> None:
    """Judge `data` as everything a client has sent so far."""
    verdict = _verdict(data)
    assert _verdict(bytearray(data)) == verdict
    for size in cuts(data):
        part = _verdict(data[:size])
        if part is NEED_MORE or part == verdict:
            continue
        assert isinstance(part, Opaque), f"{part} of {size} bytes, {verdict} of {len(data)}"
        assert _NOT_WAITED_FOR.match(data[:size]), f"{part} of {size} bytes, {verdict} of {len(data)}"
        assert not _METHOD.match(data), "a request passes unread when it comes in pieces"
    hello = _hello(data)
    assert isinstance(verdict, Tls) == isinstance(hello, ClientHello)
    if isinstance(verdict, Tls):
        assert verdict.hello == hello
    if verdict is NEED_MORE and hello is not NEED_MORE:
        assert len(data) < MAX_FIRST_LINE_BYTES
    _check_requests(data, verdict)


def seeds() -> Iterator[bytes]:
    """Hellos, requests, and what other protocols say first."""
    yield from client_hello.seeds()
    yield from http1_request.seeds()
    yield from (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"*1\r\n$4\r\nPING\r\n", b"EHLO a\r\n")
    yield from (b"\r\n\nGET\t/\x0bHTTP/1.1 \n", b"GET  http://a/\n", b"CONNECT\naccept-version:1.2\n")
    yield from (b"\0\0\0\x08\x04\xd2\x16\x2f", b"GET key\r\n", b"OPTIONS * RTSP/1.0\r\n", b"M-SEARCH * HTTP/1.1\r\n")


def _verdict(data: bytes | bytearray) -> object:
    try:
        return classify(data)
    except ClientProtocolError:
        return ClientProtocolError


def _hello(data: bytes) -> object:
    try:
        return parse_client_hello(data)
    except ClientProtocolError:
        return ClientProtocolError


def _server() -> h11.Connection:
    return h11.Connection(h11.SERVER, H11_HEAD_BYTES)


def _check_requests(data: bytes, verdict: object) -> None:
    # A request line over the bound is refused here, before any parser sees it.
    expected = Http() if b"\n" in data.lstrip()[:MAX_FIRST_LINE_BYTES] else ClientProtocolError
    if isinstance(request_head(data), tuple):
        assert verdict == expected, "we read a request"
    # The line that HTTP/2 begins with is not HTTP/1 (RFC 9113 §3.4), and the one request line we leave alone.
    if not data.startswith(b"PRI * HTTP/2.0\r\n") and h11_reads(_server(), data) is not None:
        assert verdict == expected, "h11 reads a request"
