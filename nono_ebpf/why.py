"""`nono-ebpf why`: what the rules say about a host or a request, by the function that judges connections."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nono_ebpf.authority import Authority, canonical_host, host_address, split_port
from nono_ebpf.config import load
from nono_ebpf.config.files import read_profile
from nono_ebpf.config.options import Overrides
from nono_ebpf.dns.resolver import HostResolver
from nono_ebpf.errors import ClientProtocolError, ConfigError, UpstreamError, printable
from nono_ebpf.model import Identity
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, Permit, Resolve, decide
from nono_ebpf.policy.endpoints import Request
from nono_ebpf.prepare import parse_pinned
from nono_ebpf.wire import NEED_MORE, http1

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from nono_ebpf.config.settings import Settings
    from nono_ebpf.policy.rules import Policy, Rule

DEFAULT_PORT, PLAIN_HTTP_PORT, _PORT_MAX = 443, 80, 65535
ALLOWED, DENIED = 0, 1


def main(options: argparse.Namespace) -> int:
    """0 when it is allowed, 1 when not.

    Raises:
        ConfigError, InvalidAuthority: the question or the rules make no sense.
    """
    request = _request(options.method, options.path)
    asked = _authority(options.host, options.port, DEFAULT_PORT if request is None else PLAIN_HTTP_PORT)
    identity = Identity.DNS if host_address(asked.host) is None else Identity.ADDRESS
    ask = Ask(asked.host, asked.port, identity, request=request)
    settings = _settings(options)
    policy = settings.policy
    for warning in settings.warnings:
        sys.stderr.write(f"nono-ebpf: warning: {printable(warning)}\n")
    verdict: Permit | Denial | UpstreamError
    try:
        verdict = asyncio.run(_judge(policy, ask, parse_pinned(options.resolve)))
    except UpstreamError as error:
        verdict = error
    facts = _facts(ask, verdict)
    sys.stdout.write(json.dumps(facts, indent=2) + "\n" if options.json else _text(facts))
    return ALLOWED if isinstance(verdict, Permit) else DENIED


def _authority(text: str, port: int | None, default_port: int) -> Authority:
    host, written = split_port(text)
    if written is not None and port is not None and written != port:
        raise ConfigError("--port", f"--host says {written} already", hint="leave one of them out")
    if port is not None and not 0 < port <= _PORT_MAX:
        raise ConfigError("--port", f"{port} is not a port")
    return Authority(canonical_host(host), written or port or default_port)


def _settings(options: argparse.Namespace) -> Settings:
    return load.settings(Overrides.of(options), read_profile, home=str(Path.home()), environment=os.environ)


def _request(method: str | None, path: str | None) -> Request | None:
    if method is None and path is None:
        return None
    line = f"{method or 'GET'} {'/' if path is None else path} HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        parsed = http1.parse_request_head(line.encode("latin-1", "replace"))
        if parsed is NEED_MORE or parsed[0].method == "CONNECT":
            raise ConfigError("--method", "a tunnel is not asked about by its request", hint="leave it out")
        http1.check_origin_form(parsed[0], parsed[0].target)
    except ClientProtocolError as error:
        raise ConfigError("--method, --path", f"no such request is relayed: {error}") from error
    return Request(parsed[0].method, parsed[0].target)


async def _judge(policy: Policy, ask: Ask, pinned: Mapping[str, list[str]]) -> Permit | Denial:
    resolver = HostResolver({name: tuple(map(ip_address, addresses)) for name, addresses in pinned.items()})
    try:
        while isinstance(verdict := decide(policy, ask), Resolve):
            ask = ask.answered(verdict, await resolver.lookup(verdict.host))
        return verdict
    finally:
        await resolver.aclose()


def _facts(ask: Ask, verdict: Permit | Denial | UpstreamError) -> dict[str, Any]:
    """What is known, by the names that the audit log has; absent when unknown."""
    facts: dict[str, Any] = {"target": ask.host, "port": ask.port}
    if ask.request is not None:
        facts |= {"method": ask.request.method, "path": ask.request.target}
    if isinstance(verdict, UpstreamError):
        reason = f"the rules allow the name, but looking {verdict.target} up failed: {verdict.problem}"
        return facts | {"decision": "unknown", "reason": reason}
    if isinstance(verdict, Permit):
        return facts | {"decision": "allow", **_rule(verdict.rule), **_road(verdict)}
    facts |= {"decision": "deny", "denial_category": verdict.category.value, "reason": verdict.reason}
    if verdict.category is DenialCategory.CONNECT_BYPASSES_L7 and verdict.rule and verdict.rule.endpoints:
        facts["endpoints"] = [str(each) for each in verdict.rule.endpoints]
    return facts | _rule(verdict.rule) | ({"remedy": verdict.remedy} if verdict.remedy else {})


def _road(permit: Permit) -> dict[str, Any]:
    sent = {} if permit.target is None else {"sent_as": permit.target, "only_over": "plain HTTP"}
    if permit.via is not None:
        return sent | {"route": f"through the upstream proxy {permit.via}"}
    return sent | {"route": "direct", "resolved_addresses": [str(each.address) for each in permit.endpoints]}


def _rule(rule: Rule | None) -> dict[str, str]:
    return {"rule": rule.text, "rule_source": rule.source} if rule else {}


_WORDS = {"allow": "allowed", "deny": "denied", "unknown": "could not tell"}
_LINES = (
    ("rule", "rule"),
    ("reason", "because"),
    ("endpoints", "requests"),
    ("remedy", "allow with"),
    ("route", "route"),
    ("only_over", "only over"),
    ("sent_as", "sent as"),
    ("resolved_addresses", "addresses"),
)


def _text(facts: dict[str, Any]) -> str:
    request = f"{facts['method']} {facts['path']}  " if "method" in facts else ""
    lines = [f"{Authority(facts['target'], facts['port'])}  {request}{_WORDS[facts['decision']]}"]
    for key, title in _LINES:
        if key in facts:
            lines.append(f"  {title:<10}  {_shown(facts, key)}")
    return "\n".join(lines) + "\n"


def _shown(facts: dict[str, Any], key: str) -> str:
    value: str | Sequence[str] = facts[key]
    if key == "rule":
        return printable(f"{value}  ({facts['rule_source']})")
    return printable(value if isinstance(value, str) else ", ".join(value))
