"""An HTTP/1 response that is accepted has one reading: passed on it is the same, and a second reader agrees.

Only UpstreamError comes out. An accepted head holds no bare CR or LF, no NUL, no folded line, and not two ways to
find the end of its body; its content is the same for every cut. h11 is the second reader: what both accept has
the same line, fields, content and end for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from fuzz.http1_reading import (
    H11_HEAD_BYTES,
    UPSTREAM,
    check_agreement,
    check_body,
    check_head,
    check_one_framing,
    h11_reads,
    response_head,
)
from fuzz.prefixes import check_cuts

from nono_ebpf.errors import UpstreamError
from nono_ebpf.wire import http1

if TYPE_CHECKING:
    from collections.abc import Iterator


def check(data: bytes) -> None:
    """Judge `data` as what an upstream answers, to a request that may have a body in its answer and to HEAD."""
    verdict = check_cuts(data, response_head)
    if not isinstance(verdict, tuple):
        return
    head, size = verdict
    check_head(data[:size], head)
    for method in ("GET", "HEAD"):
        _check_response_to(method, head, data, size)


def seeds() -> Iterator[bytes]:
    """Responses in every framing, with what may follow them."""
    yield b"HTTP/1.1 404 Not \xfcberall\r\nServer: x\r\n\r\nuntil close"
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nabcHTTP/1.1"
    yield b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n3\r\nabc\r\n0;x=y\r\nX: y\r\n\r\n"
    yield b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
    yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
    yield b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 5\r\n\r\n"
    yield b"HTTP/1.1 205 Reset\r\nContent-Length: 2\r\n\r\nab"
    yield b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"


def _check_response_to(method: str, head: http1.ResponseHead, data: bytes, size: int) -> None:
    try:
        body = http1.response_body(head, method, UPSTREAM)
    except UpstreamError:
        return
    check_one_framing(head)
    content = check_body(lambda: http1.response_body(head, method, UPSTREAM), data[size:], UpstreamError)
    asking = h11.Connection(h11.CLIENT, H11_HEAD_BYTES)
    asking.send(h11.Request(method=method, target="/", headers=[("Host", "up.test")]))
    asking.send(h11.EndOfMessage())
    second = h11_reads(asking, data)
    if second is not None:
        assert (head.status, head.reason, head.version) == second.line
        check_agreement(head, content, second)
    if head.status != http1.SWITCHING_PROTOCOLS:
        _check_passed_on(head, chunked=isinstance(body, http1.ChunkedBody) and head.version == "1.1")


def _check_passed_on(head: http1.ResponseHead, *, chunked: bool) -> None:
    """What the client gets is the same response, framed by us."""
    sent = http1.response_bytes(head, close=False, chunked=chunked)
    parsed = response_head(sent)
    assert isinstance(parsed, tuple), f"we refuse what we write: {sent!r}"
    again, size = parsed
    assert size == len(sent)
    assert (again.status, again.reason) == (head.status, head.reason)
    assert list(http1.end_to_end(again.fields)) == list(http1.end_to_end(head.fields))
    assert isinstance(http1.response_body(again, "GET", UPSTREAM), http1.ChunkedBody) or not chunked
