"""The relay of one sandbox, as the composition root builds it.

Knows which parts a flow needs. Must not know what a flow does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nono_ebpf.relay.accept import Acceptor
from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.relay.context import Admit, AuditSink, Context, NameTable, OriginSource, Resolver
from nono_ebpf.relay.crowd import Crowd
from nono_ebpf.relay.flow import Flow
from nono_ebpf.relay.splice import Pipes

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from nono_ebpf.model import Endpoint
    from nono_ebpf.policy.rules import Policy
    from nono_ebpf.relay.interception import Interception
    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.services import Services
    from nono_ebpf.session_token import Token


_NO_ACCESS = ProxyAccess()


class Relay:
    """The proxy of one sandbox. `own_listeners`: the addresses by which explicit proxy clients reach us.

    `token`: what those clients have to show. `access`: what the upstream proxy, if the policy has one, is shown.
    `admit`: whether a permitted name may be looked up now. `interception`, `services`: what requests inside TLS, and
    those that a credential belongs into, need.
    """

    def __init__(
        self,
        policy: Policy,
        resolver: Resolver,
        names: NameTable,
        origins: OriginSource,
        audit: AuditSink,
        limits: Limits,
        own_listeners: Iterable[Endpoint],
        token: Token,
        access: ProxyAccess = _NO_ACCESS,
        admit: Admit = lambda _host, _process: True,
        interception: Interception | None = None,
        services: Services | None = None,
    ) -> None:
        self._limits = limits
        self._pipes = Pipes(limits)
        self._crowd = Crowd(limits)
        own = frozenset(own_listeners)
        self._context = Context(
            policy,
            resolver,
            names,
            origins,
            audit,
            limits,
            own,
            self._pipes,
            self._crowd,
            admit,
            token,
            access,
            interception,
            services,
        )
        self._acceptor: Acceptor | None = None

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serve flows from `listeners` (listening, non-blocking; they stay the caller's) until cancelled.

        Called once. Cancelling ends every flow. Raises OSError when a listener itself is broken.
        """
        self._acceptor = Acceptor(listeners, self._serve_flow, self._limits, self._crowd.make_room)
        try:
            await self._acceptor.serve()
        finally:
            self._pipes.close()

    async def drain(self, timeout_s: float) -> None:
        """Wait for flows under way or in the backlog to end by themselves, at most `timeout_s`."""
        if self._acceptor is not None:
            await self._acceptor.drain(timeout_s)

    async def _serve_flow(self, connection: socket.socket) -> None:
        flow = Flow(self._context, connection)
        self._crowd.join(flow)
        try:
            await flow.run()
        finally:
            self._crowd.leave(flow)
