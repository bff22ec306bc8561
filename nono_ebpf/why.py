"""`nono-ebpf why`: what the rules say about a host, by the function that judges connections."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nono_ebpf.authority import Authority, canonical_host, host_address, split_port
from nono_ebpf.config import load
from nono_ebpf.dns.resolver import HostResolver
from nono_ebpf.errors import ConfigError, UpstreamError
from nono_ebpf.model import Identity
from nono_ebpf.policy.decide import Ask, Denial, Permit, Resolve, decide
from nono_ebpf.prepare import parse_pinned

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from nono_ebpf.policy.rules import Policy, Rule

DEFAULT_PORT, _PORT_MAX = 443, 65535
ALLOWED, DENIED = 0, 1


def main(options: argparse.Namespace) -> int:
    """0 when it is allowed, 1 when not.

    Raises:
        ConfigError, InvalidAuthority: the question or the rules make no sense.
    """
    asked = _authority(options.host, options.port)
    policy = _policy(options)
    for warning in policy.warnings():
        sys.stderr.write(f"nono-ebpf: warning: {warning}\n")
    verdict: Permit | Denial | UpstreamError
    try:
        verdict = asyncio.run(_judge(policy, asked, parse_pinned(options.resolve)))
    except UpstreamError as error:
        verdict = error
    facts = _facts(asked, verdict)
    sys.stdout.write(json.dumps(facts, indent=2) + "\n" if options.json else _text(facts))
    return ALLOWED if isinstance(verdict, Permit) else DENIED


def _authority(text: str, port: int | None) -> Authority:
    host, written = split_port(text)
    if written is not None and port is not None and written != port:
        raise ConfigError("--port", f"--host says {written} already", hint="leave one of them out")
    if port is not None and not 0 < port <= _PORT_MAX:
        raise ConfigError("--port", f"{port} is not a port")
    return Authority(canonical_host(host), written or port or DEFAULT_PORT)


def _policy(options: argparse.Namespace) -> Policy:
    profile = None
    if options.profile is not None:
        try:
            profile = load.load_profile(Path(options.profile).read_bytes(), options.profile)
        except OSError as error:
            raise ConfigError("--profile", f"{options.profile}: {error.strerror}") from error
    return load.build_policy(profile, options.profile, options.allow_domain, options.deny_domain)


async def _judge(policy: Policy, asked: Authority, pinned: Mapping[str, list[str]]) -> Permit | Denial:
    identity = Identity.DNS if host_address(asked.host) is None else Identity.ADDRESS
    ask = Ask(asked.host, asked.port, identity)
    verdict = decide(policy, ask)
    if isinstance(verdict, Resolve):
        resolver = HostResolver({name: tuple(map(ip_address, addresses)) for name, addresses in pinned.items()})
        try:
            verdict = decide(policy, replace(ask, addresses=await resolver.lookup(verdict.host)))
        finally:
            await resolver.aclose()
    if isinstance(verdict, Resolve):
        raise UpstreamError("resolve", asked.host, "the verdict depends on a second name")
    return verdict


def _facts(asked: Authority, verdict: Permit | Denial | UpstreamError) -> dict[str, Any]:
    """What is known, by the names that the audit log has; absent when unknown."""
    facts: dict[str, Any] = {"target": asked.host, "port": asked.port}
    if isinstance(verdict, UpstreamError):
        return facts | {
            "decision": "unknown",
            "reason": f"the rules allow the name, but looking it up failed: {verdict.problem}",
        }
    if isinstance(verdict, Permit):
        addresses = [str(endpoint.address) for endpoint in verdict.endpoints]
        return facts | {"decision": "allow", **_rule(verdict.rule), "resolved_addresses": addresses}
    facts |= {"decision": "deny", "denial_category": verdict.category.value, "reason": verdict.reason}
    return facts | _rule(verdict.rule) | ({"remedy": verdict.remedy} if verdict.remedy else {})


def _rule(rule: Rule | None) -> dict[str, str]:
    return {"rule": rule.text, "rule_source": rule.source} if rule else {}


_WORDS = {"allow": "allowed", "deny": "denied", "unknown": "could not tell"}
_LINES = (("rule", "rule"), ("reason", "because"), ("remedy", "allow with"), ("resolved_addresses", "addresses"))


def _text(facts: dict[str, Any]) -> str:
    lines = [f"{Authority(facts['target'], facts['port'])}  {_WORDS[facts['decision']]}"]
    for key, title in _LINES:
        if key in facts:
            lines.append(f"  {title:<10}  {_shown(facts, key)}")
    return "\n".join(lines) + "\n"


def _shown(facts: dict[str, Any], key: str) -> str:
    value: str | Sequence[str] = facts[key]
    if key == "rule":
        return f"{value}  ({facts['rule_source']})"
    return value if isinstance(value, str) else ", ".join(value)
