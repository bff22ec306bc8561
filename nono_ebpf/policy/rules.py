"""Host rules: how they are written, and how those for a host and port are found.

A rule is `host`, `host:port`, `*.domain[:port]` (any depth below the domain, not the domain itself) or
`*[:port]`. A bare host means ports 80 and 443 where it allows, and every port where it denies. Hosts are in
the form of `nono_ebpf.authority`; wildcards never match inside a label. A rule with endpoints allows only those
requests, and the other rules for the same host allow no more. Must not know I/O or what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from nono_ebpf.authority import canonical_host, host_address, split_port
from nono_ebpf.errors import ConfigError, InvalidAuthority
from nono_ebpf.policy.address import ALWAYS_DENIED_NAMES, always_denied
from nono_ebpf.policy.endpoints import EndpointRule  # noqa: TC001  # msgspec reads the annotations of a rule
from nono_ebpf.policy.upstream_proxy import UpstreamProxy  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nono_ebpf.policy.services import Service

WEB_PORTS = frozenset({80, 443})
_EXPECTED = "write host, host:port, *.domain or [IPv6]:port"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `pattern` is a canonical host, `*.` and a canonical name, or `*`.

    `ports` None is every port; `names_port`: the operator wrote it, rather than leaving it to the default.
    `endpoints`: the only requests it is for; () is any connection. `intercept`: whichever they are, each is looked at.
    `text` is what the operator wrote, `source` where.
    """

    pattern: str
    ports: frozenset[int] | None
    text: str
    source: str
    names_port: bool = False
    endpoints: tuple[EndpointRule, ...] = ()
    intercept: bool = False

    @property
    def lists_address(self) -> bool:
        """Whether `pattern` is an address."""
        return "*" not in self.pattern and host_address(self.pattern) is not None


def parse_allow_rule(
    text: str, source: str, *, ports: frozenset[int] = WEB_PORTS, endpoints: tuple[EndpointRule, ...] = ()
) -> Rule:
    """Allow `text` on its port, or on `ports`. Raises ConfigError, whose `where` is `source`."""
    pattern, port = _parse(text, source)
    return Rule(pattern, ports if port is None else frozenset({port}), text, source, port is not None, endpoints)


def parse_deny_rule(text: str, source: str) -> Rule:
    """Deny `text` on its port, or on every port. Raises ConfigError, whose `where` is `source`."""
    pattern, port = _parse(text, source)
    return Rule(pattern, None if port is None else frozenset({port}), text, source, port is not None)


# The rules of one pattern by port, None being those for every port; the first of them answers.
_Ports = dict[int | None, list[Rule]]


class HostRules:
    """Rules indexed by host. A lookup costs one dictionary access per label, however many rules there are."""

    __slots__ = ("_below", "_everywhere", "_exact", "has_endpoints", "intercepts", "lists_addresses", "rules")

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self._exact: dict[str, _Ports] = {}
        self._below: dict[str, _Ports] = {}
        self._everywhere: _Ports = {}
        self.lists_addresses = any(rule.lists_address for rule in self.rules)
        self.has_endpoints = any(rule.endpoints for rule in self.rules)
        self.intercepts = any(rule.intercept for rule in self.rules)
        # Where a port is both written and a default, the rule that writes it answers: it permits more.
        for rule in sorted(self.rules, key=lambda rule: not rule.names_port):
            ports = self._ports_of(rule.pattern)
            for port in (None,) if rule.ports is None else sorted(rule.ports):
                ports.setdefault(port, []).append(rule)

    def __repr__(self) -> str:
        return f"HostRules({list(self.rules)!r})"

    def match(self, host: str, port: int | None) -> Rule | None:
        """The most specific rule for the canonical `host` on `port`; for port None, one for any port."""
        if port is None:
            return next(self.matching(host), None)
        return next(iter(self.most_specific(host, port)), None)

    def most_specific(self, host: str, port: int) -> list[Rule]:
        """Of the patterns that have a rule for the canonical `host` on `port`, all those of the most specific one."""
        for ports in self._tables(host):
            if found := ports.get(port) or ports.get(None):
                return found
        return []

    def intercepting(self, host: str, port: int) -> Rule | None:
        """A rule that wants every request to the canonical `host` on `port` looked at, however specific."""
        if not self.intercepts:
            return None
        tables = [[*ports.get(port, ()), *ports.get(None, ())] for ports in self._tables(host)]
        return next((rule for rule in chain.from_iterable(tables) if rule.intercept), None)

    def match_every_port(self, host: str) -> Rule | None:
        """The most specific rule that holds for the canonical `host` on every port."""
        return next((ports[None][0] for ports in self._tables(host) if None in ports), None)

    def matching(self, host: str) -> Iterator[Rule]:
        """Every rule for the canonical `host`, the most specific first."""
        for ports in self._tables(host):
            yield from dict.fromkeys(chain.from_iterable(ports.values()))

    def with_endpoints(self, host: str, port: int) -> list[Rule]:
        """Every rule for the canonical `host` on `port` that is for certain requests only.

        Where `port` is one that nobody wrote out, those without a port hold as well: what opens it is as general.
        """
        if not self.has_endpoints:
            return []
        tables = [[*ports.get(port, ()), *ports.get(None, ())] for ports in self._tables(host)]
        if found := [rule for rule in chain.from_iterable(tables) if rule.endpoints]:
            return found
        opens = self.match(host, port)
        if opens is None or opens.names_port:
            return []
        return [rule for rule in self.matching(host) if rule.endpoints and not rule.names_port]

    def _ports_of(self, pattern: str) -> _Ports:
        if pattern == "*":
            return self._everywhere
        if pattern.startswith("*."):
            return self._below.setdefault(pattern[2:], {})
        return self._exact.setdefault(pattern, {})

    def _tables(self, host: str) -> Iterator[_Ports]:
        if found := self._exact.get(host):
            yield found
        if self._below:
            # No wildcard ends in digits, so none matches a part of an IPv4 address.
            cut = host.find(".")
            while cut >= 0:
                if found := self._below.get(host[cut + 1 :]):
                    yield found
                cut = host.find(".", cut + 1)
        if self._everywhere:
            yield self._everywhere


@dataclass(frozen=True, slots=True)
class Policy:
    """What a sandbox may reach. An empty allow list allows nothing.

    `managed`: where a credential is to be put into requests; the text of such a rule is the service's name.
    `services`: what they belong to, by name. `upstream_proxy`: what is permitted goes through
    it, but for what it is told to leave alone.
    """

    allow: HostRules
    deny: HostRules
    managed: HostRules = field(default_factory=HostRules)
    upstream_proxy: UpstreamProxy | None = None
    services: Mapping[str, Service] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """What the operator should know about rules that allow very much, or nothing; one line each."""
        return [f"{rule.source}: {text}" for rule in self.allow.rules if (text := _warning(rule))]


def _parse(text: str, source: str) -> tuple[str, int | None]:
    try:
        host, port = split_port(text)
        return _pattern(host), port
    except InvalidAuthority as error:
        raise ConfigError(source, f"{text[:300]!a} is not a host rule: {error.problem}", hint=_EXPECTED) from error


def _pattern(host: str) -> str:
    if host == "*":
        return host
    if not host.startswith("*."):
        return canonical_host(host)
    domain = canonical_host(host[2:])
    if host_address(domain):
        raise InvalidAuthority(host, "an address has no names below it")
    return f"*.{domain}"


def _warning(rule: Rule) -> str | None:
    if rule.pattern == "*":
        return f"{rule.text} allows every host"
    domain = rule.pattern.removeprefix("*.")
    if rule.pattern != domain:
        return None if "." in domain else f"{rule.text} allows every host below .{domain}"
    address = host_address(domain)
    if domain in ALWAYS_DENIED_NAMES or (address and always_denied(address)):
        return f"{rule.text} has no effect: it is always denied"
    if not rule.names_port and (domain == "localhost" or (address and address.is_loopback)):
        return f"{rule.text} has no effect: this machine's own addresses need a port, as in {rule.text}:8080"
    return None
