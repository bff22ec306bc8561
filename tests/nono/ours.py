"""Our two answers to a request: what `decide()` says of it, and what a client of the relay is told.

Both run in a namespace that the caller enters; names are what a hosts file says, read by the product's own resolver.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kit.patience import patient
from kit.relaying import TOKEN, Relaying

from nono_ebpf.dns.resolver import HostResolver
from nono_ebpf.errors import ClientProtocolError, ConfigError, UpstreamError
from nono_ebpf.model import Identity, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Permit, Resolve, decide
from nono_ebpf.policy.rules import HostRules, Policy, parse_allow_rule, parse_deny_rule
from nono_ebpf.wire import NEED_MORE, http1

if TYPE_CHECKING:
    from pathlib import Path

    from cases import Case

    from nono_ebpf.authority import Authority

DEADLINE_S = patient(90)
# Answered only when the rules let a request through, since nothing can be reached.
BAD_GATEWAY = 502


def resolver(hosts: Path, resolv_conf: Path) -> HostResolver:
    """The product's, without a nameserver."""
    return HostResolver(hosts=hosts, resolv_conf=resolv_conf, nameservers=[])


def policy(case: Case) -> Policy:
    """Its rules. Raises ConfigError: one of them is none."""
    return Policy(
        HostRules(parse_allow_rule(rule.text, "allow") for rule in case.allow),
        HostRules(parse_deny_rule(rule.text, "deny") for rule in case.deny),
    )


class Alone(Relaying):
    """A relay with a rule set, resolving as the hosts file says."""

    def __init__(self, case: Case, names: HostResolver) -> None:
        allow, deny = (tuple(rule.text for rule in rules) for rules in (case.allow, case.deny))
        super().__init__(allow=allow, deny=deny)
        self._names = names

    async def lookup(self, host: str) -> tuple[ResolvedAddress, ...]:
        return await self._names.lookup(host)

    async def status(self, request: str) -> int:
        """The answer to `request` on a connection of its own, 0 when there is none."""
        peer = await self.connect_to_proxy()
        await peer.send(request.replace("{token}", TOKEN).encode())
        try:
            line = await peer.receive(len("HTTP/1.1 200"))
        except ConnectionResetError:
            line = b""
        peer.close()
        return int(line.split()[1]) if line else 0


async def relayed(cases: list[Case], names: HostResolver) -> list[int]:
    """The statuses of cases with the same rules; all of them 0 when a rule is none, since nothing starts then."""
    try:
        policy(cases[0])
    except ConfigError:
        return [0] * len(cases)
    relaying = Alone(cases[0], names)
    async with asyncio.timeout(DEADLINE_S), relaying:
        return [await relaying.status(case.request) for case in cases]


async def permitted(case: Case, names: HostResolver) -> bool:
    """Whether `decide()` lets the request through, be the host reachable or not."""
    try:
        rules, authority = policy(case), _authority(case)
    except (ConfigError, ClientProtocolError):
        return False
    ask = Ask(authority.host, authority.port, Identity.AUTHORITY)
    verdict = decide(rules, ask)
    if isinstance(verdict, Resolve):
        try:
            addresses = await names.lookup(verdict.host)
        except UpstreamError:
            return True
        verdict = decide(rules, ask.answered(verdict, addresses))
    return isinstance(verdict, Permit)


def _authority(case: Case) -> Authority:
    parsed = http1.parse_request_head(case.request.encode())
    assert parsed is not NEED_MORE
    head = parsed[0]
    if case.form == "connect":
        return http1.connect_authority(head)
    absolute = http1.split_absolute_form(head.target)
    assert absolute is not None
    return http1.absolute_authority(absolute[1])
