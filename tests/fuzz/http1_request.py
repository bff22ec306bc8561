"""An HTTP/1 request that is accepted has one reading: sent on it is the same, and a second reader agrees.

Only ClientProtocolError comes out. An accepted head holds no bare CR or LF, no NUL, no folded line, not two Hosts,
and not two ways to find the end of its body; its content is the same for every cut. h11 is the second reader:
what both accept has the same line, fields, content and end for both. What we send upstream names the host that
was judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from fuzz.http1_reading import (
    H11_HEAD_BYTES,
    check_agreement,
    check_body,
    check_head,
    check_one_framing,
    framing_fields,
    h11_reads,
    request_head,
)
from fuzz.prefixes import check_cuts

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.relay.explicit import addressed_to_proxy
from nono_ebpf.relay.http import Redirected
from nono_ebpf.wire import http1

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nono_ebpf.relay.exchange import Addressed


# With a Host that the client left out, what we send may have more fields than we take from a client.
_MANY_FIELDS = 256


def check(data: bytes) -> None:
    """Judge `data` as what a client sends."""
    verdict = check_cuts(data, request_head)
    if not isinstance(verdict, tuple):
        return
    head, size = verdict
    check_head(data[:size].removeprefix(b"\r\n"), head)
    assert len(http1.field_values(head.fields, b"host")) <= 1
    try:
        http1.request_body(head)
    except ClientProtocolError:
        return
    check_one_framing(head)
    content = check_body(lambda: http1.request_body(head), data[size:], ClientProtocolError)
    second = h11_reads(h11.Connection(h11.SERVER, H11_HEAD_BYTES), data)
    if second is not None:
        assert (head.method, head.target, head.version) == second.line
        check_agreement(head, content, second)
    for addressing in (Redirected(80, None), Redirected(80, "known.test"), addressed_to_proxy):
        _check_forwarded(head, addressing)


def seeds() -> Iterator[bytes]:
    """Requests in every form and framing, with what may follow them."""
    host = b" HTTP/1.1\r\nHost: a.test\r\n"
    yield b"GET /p?q" + host + b"X-A:\t one two \r\nX-A:\r\n\r\n"
    yield b"\r\nHEAD *" + host + b"Connection: close, x-a\r\nX-A: 1\r\n\r\nGET / HTTP/1.1\r\n"
    yield b"POST http://A.test.:80?x" + host + b"Content-Length: 3\r\n\r\nabcGET"
    yield (
        b"PUT /" + host + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1 ; x\r\n \r\n000\r\nX: x\r\n\r\nGET"
    )
    yield b"PUT /" + host + b"Transfer-Encoding: Chunked\r\n\r\na\r\n0123456789\r\n1;x=1\r\n!\r\n0\r\nA: 1\r\n\r\nGET"
    yield b"PUT /" + host + b"Transfer-Encoding: Chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n"
    yield b"PUT /" + host + b"Transfer-Encoding: chunked\r\n\r\n00003\r\nabc\r\n0001000\r\nx"
    yield b"PATCH /" + host + b"Content-Length: 01000\r\n\r\nx"
    yield b"CONNECT a.test:443" + host + b"\r\n\x16\x03\x01"
    yield b"OPTIONS http://a.test HTTP/1.0\r\n\r\n"
    yield b"GET /" + host + b"host: b.test\r\n folded: 1\r\nContent-Length: 1, 1\r\n\r\n"
    yield (
        b"GET /chat" + host + b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )


def _check_forwarded(head: http1.RequestHead, addressing: Callable[[http1.RequestHead], Addressed]) -> None:
    """What is sent upstream is the request that was judged: its host, its path, its fields, its framing."""
    try:
        addressed = addressing(head)
    except ClientProtocolError:
        return
    absolute = http1.split_absolute_form(head.target)
    assert absolute is None or http1.absolute_authority(absolute[1]) == addressed.authority, "two servers are named"
    if len(head.fields) > _MANY_FIELDS:
        return
    websocket = http1.asks_for_websocket(head)
    sent = http1.request_bytes(head, addressed.target, addressed.authority, websocket=websocket)
    parsed = request_head(sent)
    assert isinstance(parsed, tuple), f"we refuse what we write: {sent!r}"
    again, size = parsed
    assert size == len(sent)
    assert (again.method, again.target) == (head.method, addressed.target)
    assert http1.host_field_authority(again, 80) == addressed.authority
    assert list(http1.end_to_end(again.fields)) == list(http1.end_to_end(head.fields))
    assert http1.asks_for_websocket(again) == websocket
    assert framing_fields(again) == framing_fields(head)
    assert http1.request_body(again).done == http1.request_body(head).done
    second = h11_reads(h11.Connection(h11.SERVER, H11_HEAD_BYTES), sent)
    assert second is not None, f"h11 refuses what we write: {sent!r}"
    assert second.line == (again.method, again.target, "1.1")
    assert [value for name, value in second.fields if name == b"host"] == [http1.host_field(addressed.authority)]
