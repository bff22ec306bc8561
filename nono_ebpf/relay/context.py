"""What every flow of one sandbox shares, and the interfaces through which the relay sees everything else.

Must not know how any of them works: with four small stand-ins the whole relay runs without root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nono_ebpf.errors import UpstreamError
from nono_ebpf.policy.decide import Ask, Denial, Permit, Resolve, decide

if TYPE_CHECKING:
    import socket

    from nono_ebpf.audit.record import Record
    from nono_ebpf.model import Endpoint, FlowOrigin, IPAddress, Process, ResolvedAddress
    from nono_ebpf.policy.rules import Policy
    from nono_ebpf.relay.chain import ProxyAccess
    from nono_ebpf.relay.crowd import Crowd
    from nono_ebpf.relay.interception import Interception
    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.services import Services
    from nono_ebpf.relay.splice import Pipes
    from nono_ebpf.session_token import Token

# Whether a process may have a permitted name looked up now; a refusal is recorded by whoever is asked.
Admit = Callable[[str, "Process | None"], bool]


class OriginSource(Protocol):
    """The kernel's record of redirected connections."""

    def take(self, connection: socket.socket) -> FlowOrigin | None:
        """Where `connection` was going and whose it is, readable once; None when the kernel knows nothing."""


class Resolver(Protocol):
    """The host's view of names."""

    async def lookup(self, host: str) -> tuple[ResolvedAddress, ...]:
        """Every address of a canonical host; () for none. Raises UpstreamError("resolve", ...)."""


class NameTable(Protocol):
    """Which name this sandbox was given an address for."""

    def name_of(self, address: IPAddress) -> str | None:
        """The canonical name; None when the address was never given out."""


class AuditSink(Protocol):
    """Where finished records go."""

    def write(self, record: Record) -> None:
        """Keep `record`, now."""


@dataclass(frozen=True, slots=True)
class Context:
    """The relay's surroundings.

    `own_listeners`: where explicit proxy clients connect, as the sandbox sees it; `token`: what they have to show.
    `access`: what the upstream proxy is shown. `interception`: what it takes to end TLS here; None: it is not done.
    `services`: what credentials are put into; None: there are none.
    """

    policy: Policy
    resolver: Resolver
    names: NameTable
    origins: OriginSource
    audit: AuditSink
    limits: Limits
    own_listeners: frozenset[Endpoint]
    pipes: Pipes
    crowd: Crowd
    admit: Admit
    token: Token
    access: ProxyAccess
    interception: Interception | None = None
    services: Services | None = None

    async def judge(self, ask: Ask, process: Process | None) -> Permit | Denial:
        """`decide()`, with addresses looked up when it asks for them, for `process`.

        Raises:
            UpstreamError: phase "resolve".
        """
        verdict = decide(self.policy, ask)
        # At most two questions: whose address a literal is, and where the upstream proxy is.
        for _ in range(2):
            if not isinstance(verdict, Resolve):
                break
            ask = ask.answered(verdict, await self._lookup(verdict, ask, process))
            verdict = decide(self.policy, ask)
        if isinstance(verdict, Resolve):
            raise UpstreamError("resolve", ask.host, "the verdict depends on a third name")
        return verdict

    async def _lookup(self, wanted: Resolve, ask: Ask, process: Process | None) -> tuple[ResolvedAddress, ...]:
        # The upstream proxy looks the name up, so that is what a process can have too much of.
        if not self.admit(ask.host if wanted.of_proxy else wanted.host, process):
            raise UpstreamError("resolve", ask.host, "too many new names were asked for")
        try:
            async with asyncio.timeout(self.limits.resolve_s):
                return await self.resolver.lookup(wanted.host)
        except TimeoutError as error:
            raise UpstreamError("resolve", wanted.host, f"no answer within {self.limits.resolve_s:g} s") from error


def note_verdict(record: Record, verdict: Permit | Denial) -> None:
    """Write down what was decided, and by which rule."""
    if verdict.rule is not None:
        record.rule, record.rule_source = verdict.rule.text, verdict.rule.source
    if isinstance(verdict, Permit):
        record.decision = "allow"
        return
    record.decision, record.denial_category = "deny", verdict.category.value
    record.reason, record.remedy = verdict.reason, verdict.remedy
