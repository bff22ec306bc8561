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
from nono_ebpf.config.presets import nearest
from nono_ebpf.config.shown import kept_at, placed, requests_of
from nono_ebpf.dns.resolver import HostResolver
from nono_ebpf.errors import ClientProtocolError, ConfigError, UpstreamError, printable
from nono_ebpf.model import Identity
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, Permit, Resolve, decide
from nono_ebpf.policy.endpoints import Request
from nono_ebpf.policy.rules import HostRules
from nono_ebpf.prepare import parse_pinned
from nono_ebpf.wire import NEED_MORE, http1

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from nono_ebpf.config.routes import Route
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.policy.rules import Policy, Rule

DEFAULT_PORT, PLAIN_HTTP_PORT, _PORT_MAX = 443, 80, 65535
ALLOWED, DENIED = 0, 1


def main(options: argparse.Namespace) -> int:
    """0 when it is allowed, 1 when not.

    Raises:
        ConfigError, InvalidAuthority: the question or the rules make no sense.
    """
    settings = _settings(options)
    ask = _ask(options, settings)
    for warning in settings.warnings:
        sys.stderr.write(f"nono-ebpf: warning: {printable(warning)}\n")
    verdict: Permit | Denial | UpstreamError
    try:
        verdict = asyncio.run(_judge(settings.policy, ask, parse_pinned(options.resolve)))
    except UpstreamError as error:
        verdict = error
    facts = _facts(ask, verdict, settings)
    sys.stdout.write(json.dumps(facts, indent=2) + "\n" if options.json else _text(facts))
    return ALLOWED if facts["decision"] == "allow" else DENIED


def _ask(options: argparse.Namespace, settings: Settings) -> Ask:
    if options.service is not None:
        return _ask_service(options, settings)
    asked = _authority(options.host, options.port)
    identity = Identity.DNS if host_address(asked.host) is None else Identity.ADDRESS
    request = None
    if options.method is not None or options.path is not None:
        request = _request(options.method, options.path, tls=_is_tls(settings.policy, asked))
    return Ask(asked.host, asked.port, identity, request=request)


def _ask_service(options: argparse.Namespace, settings: Settings) -> Ask:
    """As it is asked for by its own URL at the proxy."""
    routes = {route.name: route for route in settings.routes}
    route = routes.get(options.service)
    if options.port is not None:
        raise ConfigError("--port", "the service has its own", hint="leave it out")
    if route is None:
        hint = nearest(options.service, routes) if routes else "add --credential, or name credentials in the profile"
        raise ConfigError("--service", f"no service in use is called {options.service!a}", hint=hint)
    service = route.service
    if "*" in service.host.pattern:
        raise ConfigError("--service", f"{options.service} has no URL of its own: it is many hosts", hint="ask --host")
    (port,) = service.host.ports or (DEFAULT_PORT,)
    request = _request(options.method, options.path, tls=service.tls, base_path=service.base_path)
    return Ask(service.host.pattern, port, Identity.AUTHORITY, request=request, service=service.name)


def _is_tls(policy: Policy, asked: Authority) -> bool:
    """What clients speak there, as far as the rules tell."""
    plain = [each.host for each in policy.services.values() if not each.tls]
    return asked.port != PLAIN_HTTP_PORT and not any(
        each.pattern == asked.host and asked.port in (each.ports or ()) for each in plain
    )


def _authority(text: str, port: int | None) -> Authority:
    host, written = split_port(text)
    if written is not None and port is not None and written != port:
        raise ConfigError("--port", f"--host says {written} already", hint="leave one of them out")
    if port is not None and not 0 < port <= _PORT_MAX:
        raise ConfigError("--port", f"{port} is not a port")
    return Authority(canonical_host(host), written or port or DEFAULT_PORT)


def _settings(options: argparse.Namespace) -> Settings:
    return load.settings(Overrides.of(options), read_profile, home=str(Path.home()), environment=os.environ)


def _request(method: str | None, path: str | None, *, tls: bool, base_path: str = "") -> Request:
    line = f"{method or 'GET'} {'/' if path is None else path} HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        parsed = http1.parse_request_head(line.encode("latin-1", "replace"))
        if parsed is NEED_MORE or parsed[0].method == "CONNECT":
            raise ConfigError("--method", "a tunnel is not asked about by its request", hint="leave it out")
        http1.check_origin_form(parsed[0], parsed[0].target)
    except ClientProtocolError as error:
        raise ConfigError("--method, --path", f"no such request is relayed: {error}") from error
    return Request(parsed[0].method, base_path + parsed[0].target, tls)


async def _judge(policy: Policy, ask: Ask, pinned: Mapping[str, list[str]]) -> Permit | Denial:
    resolver = HostResolver({name: tuple(map(ip_address, addresses)) for name, addresses in pinned.items()})
    try:
        while isinstance(verdict := decide(policy, ask), Resolve):
            ask = ask.answered(verdict, await resolver.lookup(verdict.host))
        return verdict
    finally:
        await resolver.aclose()


def _facts(ask: Ask, verdict: Permit | Denial | UpstreamError, settings: Settings) -> dict[str, Any]:
    """What is known, by the names that the audit log has; absent when unknown."""
    facts: dict[str, Any] = {"target": ask.host, "port": ask.port}
    if ask.request is not None:
        over = "TLS" if ask.request.tls else "plain HTTP"
        facts |= {"method": ask.request.method, "path": ask.request.target, "over": over}
    if isinstance(verdict, UpstreamError):
        reason = f"the rules allow the name, but looking {verdict.target} up failed: {verdict.problem}"
        return facts | {"decision": "unknown", "reason": reason}
    if isinstance(verdict, Permit):
        return facts | {"decision": "allow", **_rule(verdict.rule), **_credential(verdict, settings), **_road(verdict)}
    if ask.request is None and verdict.category is DenialCategory.CONNECT_BYPASSES_L7:
        return facts | _request_by_request(ask, verdict, settings)
    facts |= {"decision": "deny", "denial_category": verdict.category.value, "reason": verdict.reason}
    return facts | _rule(verdict.rule) | ({"remedy": verdict.remedy} if verdict.remedy else {})


def _request_by_request(ask: Ask, verdict: Denial, settings: Settings) -> dict[str, Any]:
    """No tunnel leads there, but requests do: over plain HTTP, or in TLS that is ended by the proxy."""
    there = [route for route in settings.routes if _is_at(route, ask)]
    if refused := next((route for route in there if route.unsupported), None):
        reason = f"requests to it need the credential {refused.name}: {refused.unsupported}"
        category = DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE.value
        return {"decision": "deny", "denial_category": category, "reason": reason, **_rule(verdict.rule)}
    facts: dict[str, Any] = {"decision": "allow", "judged": "request by request", **_rule(verdict.rule)}
    if verdict.rule and verdict.rule.endpoints:
        facts["endpoints"] = [str(each) for each in verdict.rule.endpoints]
    said = [f"{route.name}: {each}" for route in there for each in requests_of(route)]
    return facts | ({"services": said} if there else {})


def _is_at(route: Route, ask: Ask) -> bool:
    host = route.service.host
    return ask.port in (host.ports or ()) and any(rule == host for rule in HostRules([host]).matching(ask.host))


def _credential(permit: Permit, settings: Settings) -> dict[str, str]:
    """What the proxy puts in, if anything."""
    route = next((each for each in settings.routes if permit.service and each.service == permit.service), None)
    return {} if route is None else {"service": route.name, "credential": kept_at(route), "injected": placed(route)}


def _road(permit: Permit) -> dict[str, Any]:
    sent = {} if permit.target is None else {"sent_as": permit.target}
    if permit.via is not None:
        return sent | {"route": f"through the upstream proxy {permit.via}"}
    return sent | {"route": "direct", "resolved_addresses": [str(each.address) for each in permit.endpoints]}


def _rule(rule: Rule | None) -> dict[str, str]:
    return {"rule": rule.text, "rule_source": rule.source} if rule else {}


_WORDS = {"allow": "allowed", "deny": "denied", "unknown": "could not tell"}
_LINES = (
    ("rule", "rule"),
    ("reason", "because"),
    ("judged", "judged"),
    ("endpoints", "requests"),
    ("services", "services"),
    ("remedy", "allow with"),
    ("over", "over"),
    ("service", "service"),
    ("credential", "credential"),
    ("injected", "put into"),
    ("route", "route"),
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
