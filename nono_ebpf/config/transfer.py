"""A policy on its way to another process of ours. The one place that knows how it is written."""

from __future__ import annotations

import msgspec

from nono_ebpf.policy.rules import HostRules, Policy, Rule
from nono_ebpf.policy.services import Service  # noqa: TC001  # msgspec reads the annotations
from nono_ebpf.policy.upstream_proxy import UpstreamProxy  # noqa: TC001  # msgspec reads the annotations


class _Transfer(msgspec.Struct, frozen=True):
    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]
    managed: tuple[Rule, ...]
    upstream_proxy: UpstreamProxy | None
    services: tuple[Service, ...]


def dump_policy(policy: Policy) -> bytes:
    """`policy` for another process of ours; `restore_policy` reads it back."""
    rules = (policy.allow.rules, policy.deny.rules, policy.managed.rules)
    return msgspec.json.encode(_Transfer(*rules, policy.upstream_proxy, tuple(policy.services.values())))


def restore_policy(data: bytes) -> Policy:
    """The policy that `dump_policy` wrote. The rules are not parsed again: `data` has to be our own."""
    transfer = msgspec.json.decode(data, type=_Transfer)
    allow, deny, managed = map(HostRules, (transfer.allow, transfer.deny, transfer.managed))
    services = {each.name: each for each in transfer.services}
    return Policy(allow, deny, managed, transfer.upstream_proxy, services)
