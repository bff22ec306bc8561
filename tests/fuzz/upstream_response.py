"""A proxy's response to CONNECT has one status and one end, however it is cut, and is fit to be shown.

Only UpstreamError comes out. No head is longer than its bound, none goes on without end, and none of its text can
steer a terminal. h11 and our parser of other responses are the second readers: what they accept as well has the same
status, and the tunnel begins at the same byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from fuzz.http1_reading import H11_HEAD_BYTES, response_head
from fuzz.prefixes import check_cuts

from nono_ebpf.errors import UpstreamError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.connect_response import MAX_HEAD_BYTES, ConnectResponse, parse_connect_response

if TYPE_CHECKING:
    from collections.abc import Iterator

_TARGET = "a.test:443"


def check(data: bytes) -> None:
    """Judge `data` as what a proxy says first, and what follows."""
    verdict = check_cuts(data, _verdict)
    if verdict is NEED_MORE:
        assert len(data) < MAX_HEAD_BYTES
    if not isinstance(verdict, tuple):
        return
    response, size = verdict
    assert isinstance(response, ConnectResponse)
    assert size <= MAX_HEAD_BYTES
    assert data[:size].endswith(b"\r\n\r\n")
    assert data[:size].count(b"\r\n\r\n") == 1
    assert 100 <= response.status <= 999
    assert response.reason.isascii()
    assert response.reason.isprintable() or not response.reason
    assert _verdict(data[:size] + b"HTTP/1.1 200 OK\r\n\r\n") == verdict, "what follows the head changes it"
    if isinstance(other := response_head(data), tuple):
        assert (other[0].status, other[1]) == (response.status, size)
    _check_h11(data, response, size)


def seeds() -> Iterator[bytes]:
    """What Squid, tinyproxy and others answer, and what is no answer."""
    yield b"HTTP/1.1 200 Connection established\r\n\r\n220 banner\r\n"
    yield b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n"
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\x16\x03\x01"
    yield b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate\r\n\r\n<html>"
    yield b'HTTP/1.1 407 No\r\nproxy-authenticate: NTLM, Basic realm="x"\r\nConnection: close\r\n\r\n'
    yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 \x1b[31m\xff\r\n\r\n"
    yield b"HTTP/1.1 503\r\nX: y\n\r\n\r\n"
    yield b"\x15\x03\x03\x00\x02\x02\x28"
    yield b"SSH-2.0-OpenSSH_9.2p1\r\n"
    yield b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES


def _verdict(data: bytes | bytearray) -> object:
    try:
        return parse_connect_response(data, "proxy.test:3128")
    except UpstreamError as error:
        return str(error)


def _check_h11(data: bytes, response: ConnectResponse, size: int) -> None:
    asking = h11.Connection(h11.CLIENT, H11_HEAD_BYTES)
    asking.send(h11.Request(method="CONNECT", target=_TARGET, headers=[("Host", _TARGET)]))
    asking.send(h11.EndOfMessage())
    asking.receive_data(data)
    try:
        event = asking.next_event()
    except h11.RemoteProtocolError:
        return
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == response.status
    if 200 <= response.status < 300:
        assert asking.trailing_data[0] == data[size:]
