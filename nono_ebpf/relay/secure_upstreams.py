"""Connections to origin servers inside TLS, kept for the next request to the same host.

Knows for whom a connection is good: the same host and port, verified for the same service, by the same road, and at one
of the endpoints that are permitted now. Must not know requests.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nono_ebpf.relay.secure import SecureUpstream, secure
from nono_ebpf.relay.upstream import dial

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from nono_ebpf.policy.decide import Permit
    from nono_ebpf.policy.upstream_proxy import UpstreamProxy
    from nono_ebpf.relay.chain import ProxyAccess
    from nono_ebpf.relay.limits import Limits


@dataclass(frozen=True, slots=True)
class _Key:
    """Whom a connection was verified to be, by which context, and how it was reached."""

    host: str
    port: int | None
    service: str | None
    via: UpstreamProxy | None

    @classmethod
    def of(cls, permit: Permit) -> _Key:
        return cls(permit.host, permit.port, permit.service.name if permit.service else None, permit.via)


class SecureUpstreams:
    """Opens and keeps connections. `contexts`: how the origin servers of a service are verified, or of none."""

    def __init__(self, limits: Limits, access: ProxyAccess, contexts: Callable[[str | None], ssl.SSLContext]) -> None:
        self._limits, self._access, self._contexts = limits, access, contexts
        # Until when each is good, by the loop's clock. The longest idle first, here and for each key.
        self._idle: dict[SecureUpstream, float] = {}
        self._by_key: defaultdict[_Key, list[SecureUpstream]] = defaultdict(list)
        self._sessions: OrderedDict[_Key, ssl.SSLSession] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def idle(self, permit: Permit) -> SecureUpstream | None:
        """A quiet connection to where `permit` leads, which is the caller's from now on; the last that was used."""
        kept = self._by_key.get(_Key.of(permit), ())
        for upstream in [each for each in reversed(kept) if each.endpoint in permit.endpoints]:
            is_good = self._idle[upstream] > asyncio.get_running_loop().time()
            self._forget(upstream)
            if is_good and upstream.is_quiet():
                return upstream
            upstream.close()
        return None

    async def connect(self, permit: Permit) -> SecureUpstream:
        """A new connection to where `permit` leads, verified. Raises UpstreamError."""
        key = _Key.of(permit)
        upstream = await dial(permit, self._limits, self._access)
        try:
            context, session = self._contexts(key.service), self._sessions.get(key)
            secured = await secure(upstream, permit.host, context, session, self._limits.handshake_s)
        except BaseException:
            self._sessions.pop(key, None)
            upstream.reset()
            raise
        secured.key, secured.remember = key, partial(self._remember, key)
        return secured

    def give_back(self, upstream: SecureUpstream, kept_alive_s: float = math.inf) -> None:
        """Keep for others what `connect` made, between a response and the next request; or close it.

        `kept_alive_s`: how long the server keeps it. A request that meets its closing is lost unless it is repeatable.
        """
        key = upstream.key
        idle_s = min(self._limits.idle_upstream_s, kept_alive_s - self._limits.closing_margin_s)
        is_good = idle_s > 0 and upstream.sock.fileno() >= 0 and upstream.is_quiet()
        if self._closed or not isinstance(key, _Key) or not is_good:
            upstream.close()
            return
        # A copy of one costs more than the rest of this; the latest is kept when the connection ends.
        if key not in self._sessions and (session := upstream.session) is not None:
            self._remember(key, session)
        if len(self._by_key[key]) >= self._limits.idle_upstreams_per_host:
            self._close(self._by_key[key][0])
        elif len(self._idle) >= self._limits.idle_upstreams:
            self._close(next(iter(self._idle)))
        self._idle[upstream] = asyncio.get_running_loop().time() + idle_s
        self._by_key[key].append(upstream)
        if self._timer is None:
            self._look_again_in(idle_s)

    def close(self) -> None:
        """Close what is idle, and what is given back later."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for upstream in list(self._idle):
            self._close(upstream)

    def _close(self, upstream: SecureUpstream) -> None:
        self._forget(upstream)
        upstream.close()

    def _forget(self, upstream: SecureUpstream) -> None:
        del self._idle[upstream]
        if isinstance(key := upstream.key, _Key):
            self._by_key[key].remove(upstream)
            if not self._by_key[key]:
                del self._by_key[key]

    def _remember(self, key: _Key, session: ssl.SSLSession) -> None:
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        if len(self._sessions) > self._limits.tls_sessions:
            self._sessions.popitem(last=False)

    def _look_again_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._close_old)

    def _close_old(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for upstream in [each for each, until in self._idle.items() if until <= now]:
            self._close(upstream)
        if self._idle:
            self._look_again_in(min(self._idle.values()) - now)
