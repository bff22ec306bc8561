"""Dials what was permitted, and nothing else: itself, or by way of the upstream proxy that the permit names.

Knows Happy Eyeballs version 2 (RFC 8305 §4 to §6). Must not know host names: it takes a `Permit`, whose
endpoints are the very addresses that were judged. Where a proxy is named there is no other way: its failure is the
flow's.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import Endpoint
from nono_ebpf.relay.chain import ProxyAccess, ask_for_tunnel
from nono_ebpf.relay.over_tls import over_tls
from nono_ebpf.relay.stream import Upstream, connect, reason_of, tune

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nono_ebpf.policy.decide import Permit
    from nono_ebpf.policy.upstream_proxy import UpstreamProxy
    from nono_ebpf.relay.limits import Limits

_NO_ACCESS: Final = ProxyAccess()


async def dial(permit: Permit, limits: Limits, access: ProxyAccess = _NO_ACCESS) -> Upstream:
    """Connect to the first of the permitted endpoints that answers, and through it if it is an upstream proxy's.

    Raises:
        UpstreamError: phase "connect"; caused by a TimeoutError when the deadline or the network's patience
        ran out.
    """
    if permit.via is not None:
        return await _dial_through(permit.via, permit, limits, access)
    target = f"{permit.host}:{permit.port}"
    if not permit.endpoints:
        raise UpstreamError("connect", target, "has no address")
    try:
        async with asyncio.timeout(limits.connect_s):
            sock, endpoint = await _connect_first(permit.endpoints, limits)
    except OSError as error:
        raise UpstreamError("connect", target, reason_of(error)) from error
    return Upstream(sock, target, endpoint)


async def _dial_through(via: UpstreamProxy, permit: Permit, limits: Limits, access: ProxyAccess) -> Upstream:
    target = f"{permit.host}:{permit.port}"
    if not permit.endpoints:
        raise UpstreamError("connect", target, f"the upstream proxy {via} has no address")
    try:
        async with asyncio.timeout(limits.upstream_proxy_s):
            sock, endpoint = await _connect_first(permit.endpoints, limits)
            upstream = Upstream(sock, target, endpoint, str(via))
            try:
                if via.tls:
                    upstream = await over_tls(upstream, via, access.tls)
                await ask_for_tunnel(upstream, via, permit, access.authorization, limits.interim_responses)
            except BaseException:
                upstream.reset()
                raise
    except OSError as error:
        timed_out = isinstance(error, TimeoutError) and not error.errno
        why = f"opened no tunnel within {limits.upstream_proxy_s:g} s" if timed_out else f"failed: {reason_of(error)}"
        raise UpstreamError("connect", target, f"the upstream proxy {via} {why}") from error
    return upstream


async def _connect_first(endpoints: Sequence[Endpoint], limits: Limits) -> tuple[socket.socket, Endpoint]:
    sock = await _race(interleave(endpoints)[: limits.dialled_at_once], limits.stagger_s)
    try:
        address, port = sock.getpeername()[:2]
    except OSError as error:  # accepted and ended before we looked
        sock.close()
        raise ConnectionResetError(errno.ECONNRESET, "") from error
    return sock, Endpoint(ip_address(address), port)


def interleave(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Alternate address families, beginning with that of the first.

    Order within a family is kept (RFC 8305 §4).
    """
    first = [each for each in endpoints if each.address.version == endpoints[0].address.version]
    second = [each for each in endpoints if each.address.version != endpoints[0].address.version]
    return [each for each in chain(*zip_longest(first, second)) if each is not None]


async def _race(endpoints: Sequence[Endpoint], stagger_s: float) -> socket.socket:
    """The first connection of staggered attempts. Raises the first attempt's OSError when all have failed."""
    if len(endpoints) == 1:
        return await _connect(endpoints[0])
    attempts: list[asyncio.Task[socket.socket | OSError]] = []
    winner: socket.socket | None = None
    try:
        async with asyncio.TaskGroup() as group:
            winner = await _first_success(group, attempts, deque(endpoints), stagger_s)
            for attempt in attempts:
                attempt.cancel()
    finally:
        _close_losers(attempts, winner)
    if winner is not None:
        return winner
    raise next(result for result in (each.result() for each in attempts) if isinstance(result, OSError))


async def _first_success(
    group: asyncio.TaskGroup,
    attempts: list[asyncio.Task[socket.socket | OSError]],
    waiting: deque[Endpoint],
    stagger_s: float,
) -> socket.socket | None:
    """Start the next attempt when the stagger is over or an attempt has failed; None when none is left."""
    pending: set[asyncio.Task[socket.socket | OSError]] = set()
    while waiting or pending:
        if waiting:
            attempts.append(group.create_task(_attempt(waiting.popleft())))
            pending.add(attempts[-1])
        done, pending = await asyncio.wait(
            pending, timeout=stagger_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
        )
        for each in done:
            if isinstance(result := each.result(), socket.socket):
                return result
    return None


def _close_losers(attempts: Sequence[asyncio.Task[socket.socket | OSError]], winner: socket.socket | None) -> None:
    """Two attempts may succeed in one turn of the loop; also, we may be cancelled after a success."""
    for attempt in attempts:
        if attempt.done() and not attempt.cancelled():
            result = attempt.result()
            if isinstance(result, socket.socket) and result is not winner:
                result.close()


async def _attempt(endpoint: Endpoint) -> socket.socket | OSError:
    """`_connect` with its failure as a value: in a TaskGroup an exception would end the other attempts."""
    try:
        return await _connect(endpoint)
    except OSError as error:
        return error


async def _connect(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        tune(sock)
        await connect(sock, str(endpoint.address), endpoint.port)
    except BaseException:
        sock.close()
        raise
    return sock
