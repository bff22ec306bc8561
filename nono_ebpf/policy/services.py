"""Services: hosts whose requests a credential is put into, and which requests those are.

A request to such a host belongs to exactly one service, or is denied: it is never sent without the credential, nor with
the one of two that happens to come first. Pure; must not know how a credential is kept or where it stands in a request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from nono_ebpf.policy.endpoints import EndpointRule, permits
from nono_ebpf.policy.rules import Rule  # noqa: TC001  # msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

_IGNORED = re.compile(r"[. ]+(?=/|\Z)")  # Windows, at the end of a name
Action = Literal["deny", "approve", "allow"]


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A request that an endpoint policy names. `reason` is for whoever is refused."""

    endpoint: EndpointRule
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What is denied, asked about and allowed, in this order; `default` for all else."""

    default: Action = "deny"
    deny: tuple[PolicyRule, ...] = ()
    approve: tuple[PolicyRule, ...] = ()
    allow: tuple[PolicyRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a service makes of a request. `rule`: what decided, for a person; `final`: no other service is asked."""

    action: Action
    rule: str
    final: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A host and a credential for it.

    `host`: the pattern and its one port; its text is `name`. `tls`: False only for this machine's loopback.
    `base_path`: what precedes the path of a request that names the service rather than the host, without a slash at its
    end. `endpoints`: the only requests it is for; () is every one. `unsupported`: why its credential can never be had;
    nothing reaches the host then.
    """

    name: str
    host: Rule
    tls: bool = True
    base_path: str = ""
    endpoints: tuple[EndpointRule, ...] = ()
    endpoint_policy: EndpointPolicy | None = None
    unsupported: str = ""

    def judge(self, method: str, readings: Sequence[str]) -> Judgement:
        """What its rules say about a request, in every reading of its path."""
        if self.endpoint_policy is not None:
            return _by_policy(self.endpoint_policy, method, readings)
        if self.endpoints and not permits(self.endpoints, method, readings):
            return Judgement("deny", "endpoint_rules")
        return Judgement("allow", "endpoint_rules" if self.endpoints else "every request")


def _refuses(endpoint: EndpointRule, method: str, reading: str) -> bool:
    """A denial means what any server may take for the same: HEAD for GET (RFC 9110 §9.3.2), a path in other case, or
    with dots and blanks behind a segment.
    """
    folded = replace(endpoint, path=_without_case(endpoint.path))
    alike = ((endpoint, reading), (folded, _without_case(_IGNORED.sub("", reading))))
    methods = (method, "GET") if method.upper() == "HEAD" else (method,)
    return any(permits((rule,), each, (path,)) for rule, path in alike for each in methods)


def _without_case(path: str) -> str:
    """One spelling of all that some language takes for the same: a long s is an s in upper case, too."""
    return path.upper().casefold()


def _by_policy(policy: EndpointPolicy, method: str, readings: Sequence[str]) -> Judgement:
    """A denial, or a question, holds when any reading is meant; a permission when each is."""
    refusing: tuple[tuple[Action, tuple[PolicyRule, ...]], ...] = (("deny", policy.deny), ("approve", policy.approve))
    for action, rules in refusing:
        for rule in rules:
            if any(_refuses(rule.endpoint, method, reading) for reading in readings):
                return Judgement(action, f"{action} {rule.endpoint}", final=True, reason=rule.reason)
    if permits([rule.endpoint for rule in policy.allow], method, readings):
        return Judgement("allow", "allow")
    return Judgement(policy.default, f"default {policy.default}", final=policy.default != "deny")
