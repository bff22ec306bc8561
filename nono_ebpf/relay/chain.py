"""Asks an upstream proxy for a tunnel to what was permitted (RFC 9110 §9.3.6).

Knows the order of the handshake. The syntax of the answer is `wire.connect_response`'s, the connection to the proxy
`upstream`'s. The destination's name is sent as it is: looking it up is the proxy's affair.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from nono_ebpf.authority import join_host_port
from nono_ebpf.errors import UpstreamError
from nono_ebpf.relay.stream import first_readable, reason_of
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.connect_response import MAX_HEAD_BYTES, ConnectResponse, parse_connect_response

if TYPE_CHECKING:
    import ssl

    from nono_ebpf.policy.decide import Permit
    from nono_ebpf.policy.upstream_proxy import UpstreamProxy
    from nono_ebpf.relay.stream import Upstream

_SWITCHING_PROTOCOLS: Final = 101
_HTTPS_PORT: Final = 443


@dataclass(frozen=True, slots=True)
class ProxyAccess:
    """What it takes to use the upstream proxy, besides its address.

    `authorization`: the value of Proxy-Authorization (RFC 9110 §11.7.2), a secret. `tls`: for a proxy inside TLS.
    """

    authorization: bytes | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


async def ask_for_tunnel(
    upstream: Upstream, via: UpstreamProxy, permit: Permit, authorization: bytes | None, interim_responses: int
) -> None:
    """Have `via`, at the other end of `upstream`, connect it to what was permitted; nothing of the tunnel is read.

    The caller sees to a deadline.

    Raises:
        UpstreamError: it does not, or what it answers is no answer, or it is gone.
    """
    target = join_host_port(permit.host, permit.port or 0)
    try:
        await asyncio.get_running_loop().sock_sendall(upstream.sock, _request(target, authorization))
        response = await _final_response(upstream.sock, via, interim_responses)
    except UpstreamError as error:
        raise UpstreamError("connect", target, f"the upstream proxy {via} {error.problem}") from error
    except OSError as error:
        problem = f"the upstream proxy {via} failed: {upstream.explain(reason_of(error))}"
        raise UpstreamError("connect", target, problem) from error
    if not 200 <= response.status < 300:
        raise UpstreamError("connect", target, _refusal(via, permit, response, authorized=authorization is not None))


def _request(target: str, authorization: bytes | None) -> bytes:
    # RFC 9112 §3.2.3: the authority-form; §3.2: Host is the same.
    fields = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % ((target.encode("ascii"),) * 2)
    if authorization is not None:
        fields += b"Proxy-Authorization: %b\r\n" % authorization
    return fields + b"\r\n"


async def _final_response(sock: socket.socket, via: UpstreamProxy, interim_responses: int) -> ConnectResponse:
    for _ in range(interim_responses + 1):
        response = await _receive(sock, str(via))
        if response.status >= 200 or response.status == _SWITCHING_PROTOCOLS:
            return response
    raise UpstreamError("connect", str(via), "sends interim responses without end")


async def _receive(sock: socket.socket, proxy: str) -> ConnectResponse:
    """The next response. What follows its head stays in the kernel, where whoever comes next looks for it."""
    head = bytearray()
    while True:
        seen = await _peek(sock, MAX_HEAD_BYTES - len(head))
        if not seen:
            raise UpstreamError("connect", proxy, "closes the connection without an answer")
        parsed = parse_connect_response(head + seen, proxy)
        size = len(head) + len(seen) if parsed is NEED_MORE else parsed[1]
        head += sock.recv(size - len(head))
        if parsed is not NEED_MORE and len(head) == size:
            return parsed[0]


async def _peek(sock: socket.socket, size: int) -> bytes:
    while True:
        try:
            return sock.recv(size, socket.MSG_PEEK)
        except BlockingIOError:
            await first_readable(sock)


def _refusal(via: UpstreamProxy, permit: Permit, response: ConnectResponse, *, authorized: bool) -> str:
    """One line: who said what, and what would help."""
    # What a proxy was told in confidence it could repeat; then its own words are not shown.
    reason = _registered_phrase(response.status) if authorized else response.reason
    said = f"{response.status} {reason}".strip()
    return f"the upstream proxy {via} answered {said}" + _advice(permit, response, authorized=authorized)


def _registered_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _advice(permit: Permit, response: ConnectResponse, *, authorized: bool) -> str:
    match response.status:
        case 407 if response.wants_other_than_basic:
            return ": it wants credentials, and not in the one way that we have, Basic"
        case 401 | 407 if authorized:  # tinyproxy has 401 for wrong ones
            return ": it does not take the credentials of --upstream-auth"
        case 407:
            return ": it wants credentials: --upstream-auth"
        case 403 | 405 if permit.port != _HTTPS_PORT:
            return f": proxies often permit CONNECT to port 443 only; it would have to permit port {permit.port}"
        case 403:
            return ": it does not permit this host; hosts in --upstream-bypass are reached without it"
        case status if status >= 500:
            return ": it cannot reach the host"
        case _:
            return ""
