"""From merged profiles to the policy they mean.

Knows what each key does, and what this version does not do yet. Must not know files or options.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from nono_ebpf.config import no_proxy
from nono_ebpf.config.merge import Domain, Merged, Sourced
from nono_ebpf.config.presets import find_network_profile, find_preset, nearest, network_policy, preset_name
from nono_ebpf.config.references import command_name
from nono_ebpf.config.schema import CredentialProvider, CustomCredential
from nono_ebpf.config.upstreams import parse_origin, parse_upstream
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.endpoints import parse_endpoint_rule
from nono_ebpf.policy.rules import WEB_PORTS, Rule, parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.upstream_proxy import UpstreamProxy, joined, parse_bypass, parse_upstream_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# First and last port, and where they were written.
Ports = tuple[Sourced[tuple[int, int]], ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A credential in use: its name, the hosts whose requests it belongs into, and how."""

    name: str
    hosts: tuple[Rule, ...]
    definition: CustomCredential | CredentialProvider
    source: str


@dataclass(slots=True)
class Compiler:
    """What `merged` means. Mistakes that only the whole shows are collected."""

    merged: Merged
    nono_globs: bool = False
    problems: list[ConfigError] = field(default_factory=list)

    def allowed(self) -> Iterator[Rule]:
        """The rules that allow, but for what `open_port` opens."""
        if (named := self.merged.network_profile) and named.value is not None:
            for group in find_network_profile(named.value, named.source).groups:
                yield from self._allow(Domain(f"@{group}", named.source))
        for domain in self.merged.allow_domain:
            yield from self._allow(domain)

    def denied(self) -> Iterator[Rule]:
        """The rules that deny."""
        for each in self.merged.deny_domain:
            for host, source in _hosts(each.value, each.source):
                yield parse_deny_rule(host, source)

    def opened(self) -> Iterator[Rule]:
        """What `open_port` opens: the same port of the host's loopback, by every name of it."""
        for each, numbers in _apart(self.open_ports()):
            first, last = each.value
            text = f"open_port {first}" if first == last else f"open_port {first}-{last}"
            ports = frozenset(numbers)
            for host in ("localhost", "127.0.0.1", "::1"):
                yield Rule(host, ports, text, each.source, names_port=True)

    def open_ports(self) -> Ports:
        """Ports of the host's loopback."""
        return (*_single(self.merged.open_port), *self.merged.open_port_range)

    def listen_ports(self) -> Ports:
        """Ports that the command may listen on."""
        return (*_single(self.merged.listen_port), *self.merged.listen_port_range)

    def connect_ports(self) -> Ports:
        """Ports that a host without a port stands for, besides the web's."""
        return _single(self.merged.connect_port)

    def upstream_proxy(self) -> UpstreamProxy | None:
        """The upstream proxy, with the hosts that are reached without it."""
        address = self.merged.upstream_proxy
        if address is None:
            return None
        return self.with_bypass(parse_upstream_proxy(address.value, address.source))

    def with_bypass(self, proxy: UpstreamProxy) -> UpstreamProxy:
        """`proxy`, and what `upstream_bypass` says."""
        entries = [parse_bypass(each.value, each.source) for each in self.merged.upstream_bypass]
        return replace(proxy, bypass=joined([proxy.bypass, *entries]))

    def routes(self) -> tuple[Route, ...]:
        """The credentials in use."""
        self._check_references()
        named = self.merged.credentials.value if self.merged.credentials else ()
        routes = [self._route(each) for each in named]
        return (*filter(None, routes), *(_provider(*each) for each in self.merged.credential_providers.items()))

    def no_proxy(self, allow: list[Rule], managed: list[Rule]) -> no_proxy.NoProxy:
        """The variables that tell clients which hosts not to ask the proxy for."""
        compute = partial(
            no_proxy.compute,
            allowed=[each.pattern for each in allow],
            judged=[each.pattern for each in allow if each.endpoints],
            managed=[each.pattern for each in managed],
        )
        entries = [no_proxy.parse_entry(each.value, each.source) for each in self.merged.no_proxy]
        try:
            return compute(entries=entries)
        except ConfigError:
            self.problems += filter(None, [_mistake(compute, entry) for entry in entries])
            return compute(entries=[])

    def _allow(self, domain: Domain) -> Iterator[Rule]:
        ports = WEB_PORTS.union(each.value for each in self.merged.connect_port)
        endpoints = tuple(
            parse_endpoint_rule(each.value.method, each.value.path, each.source, crosses=self.nono_globs)
            for each in domain.endpoints
        )
        for host, source in _hosts(domain.host, domain.source):
            yield parse_allow_rule(host, source, ports=ports, endpoints=endpoints)

    def _route(self, name: Sourced[str]) -> Route | None:
        shipped, custom = network_policy().credentials, self.merged.custom_credentials
        if name.value in custom:
            definition = custom[name.value].value
        elif name.value in shipped:
            definition = msgspec.json.decode(shipped[name.value], type=CustomCredential)
        else:
            hint = nearest(name.value, {*custom, *shipped})
            self.problems.append(ConfigError(name.source, f"no credential is called {name.value!a}", hint=hint))
            return None
        host = parse_upstream(definition.upstream, name.source, name=name.value)
        return Route(name.value, (host,), definition, name.source)

    def _check_references(self) -> None:
        """What one part of a profile calls by its name in another."""
        captures = self.merged.credential_capture
        for name, each in self.merged.custom_credentials.items():
            command = command_name(each.value.credential_key or "")
            if command is not None and command not in captures:
                problem = f"the credential {name} refers to {command}, which is none of credential_capture"
                self.problems.append(
                    ConfigError(f"{each.source}.credential_key", problem, hint=nearest(command, captures))
                )
        providers = self.merged.credential_providers
        for route in self.merged.credential_routes:
            if (provider := route.value.provider) not in providers:
                hint = nearest(provider, providers)
                problem = f"{provider} is none of credential_providers"
                self.problems.append(ConfigError(f"{route.source}.provider", problem, hint=hint))


def _mistake(compute: Callable[..., object], entry: no_proxy.Entry) -> ConfigError | None:
    try:
        compute(entries=[entry])
    except ConfigError as error:
        return error
    return None


def numbers(ports: Ports) -> frozenset[int]:
    """Every port of the ranges."""
    return frozenset(chain.from_iterable(each for _, each in _apart(ports)))


def _apart(ports: Ports) -> Iterator[tuple[Sourced[tuple[int, int]], range]]:
    """The ranges by port, each with those of its ports that none before it has: together no more than there are."""
    done = 0
    for each in sorted(ports, key=lambda each: each.value):
        first, last = each.value
        if last > done:
            yield each, range(max(first, done + 1), last + 1)
            done = last


def _single(ports: tuple[Sourced[int], ...]) -> Ports:
    return tuple(Sourced((each.value, each.value), each.source) for each in ports)


def _hosts(text: str, source: str) -> Iterator[tuple[str, str]]:
    """The hosts that `text` stands for, each with where it comes from."""
    name = preset_name(text)
    if name is None:
        yield text, source
    else:
        yield from ((host, f"{source}: @{name}") for host in find_preset(name, source).allow_domain)


def _provider(name: str, provider: Sourced[CredentialProvider]) -> Route:
    """Where tokens come from, and where they are good for."""
    origins = [*(each.host for each in provider.value.token_endpoints), *provider.value.api_hosts]
    hosts = tuple(parse_origin(each, provider.source, name=name) for each in dict.fromkeys(origins))
    return Route(name, hosts, provider.value, provider.source)
