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
from nono_ebpf.config.kinds import parse_duration
from nono_ebpf.config.merge import Domain, Merged, Sourced
from nono_ebpf.config.presets import find_network_profile, find_preset, nearest, network_policy, preset_name
from nono_ebpf.config.references import command_name
from nono_ebpf.config.routes import PathRules, Route, clashes, custom_route, provider_routes
from nono_ebpf.config.schema import CustomCredential
from nono_ebpf.config.settings import CA_SHORTEST_S, Interception, Ports
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.endpoints import parse_endpoint_rule
from nono_ebpf.policy.rules import WEB_PORTS, Rule, parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.upstream_proxy import UpstreamProxy, joined, parse_bypass, parse_upstream_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nono_ebpf.config.options import Overrides, ServiceEndpoint


@dataclass(slots=True)
class Compiler:
    """What `merged` means. Mistakes that only the whole shows are collected."""

    merged: Merged
    around: PathRules = field(default_factory=PathRules)
    allow_endpoint: Sequence[Sourced[ServiceEndpoint]] = ()
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
        """The services in use, with those of kinds that are not supported yet."""
        self._check_references()
        named = self.merged.credentials.value if self.merged.credentials else ()
        self._check_endpoints({each.value for each in named})
        custom = tuple(filter(None, map(self._route, named)))
        providers = self.merged.credential_providers
        for each in custom:
            if each.name in providers:
                problem = f"{each.name} is the name of one of credential_providers, too"
                self.problems.append(ConfigError(each.source, problem, hint="call one of them something else"))
        self.problems += clashes(custom, self._ca_variables())
        return (*custom, *chain.from_iterable(provider_routes(*each) for each in providers.items()))

    def interception(self, options: Overrides, allow: list[Rule], routes: Sequence[Route]) -> Interception:
        """The certificates of hosts that a rule or a credential needs to be looked into, or the operator wants to."""
        said = self.merged.tls_intercept
        if (options.proxy_ca_cert is None) != (options.proxy_ca_key is None):
            missing = "--proxy-ca-key" if options.proxy_ca_key is None else "--proxy-ca-cert"
            self.problems.append(ConfigError(missing, "it is missing: a CA is a certificate and its key"))
        validity = max(CA_SHORTEST_S, _seconds(said.value.ca_validity if said else None))
        if options.proxy_ca_validity is not None:
            validity = _seconds(f"{options.proxy_ca_validity}d")
        leaf = _seconds(said.value.leaf_validity if said else None, validity)
        looked_into = [each.pattern for each in allow if each.endpoints or each.intercept]
        services = [each.service.host.pattern for each in routes if not each.unsupported and each.service.tls]
        return Interception(
            tuple(dict.fromkeys([*looked_into, *services])),
            validity,
            min(leaf, validity),
            tuple(each.value for each in self._ca_variables()),
            options.proxy_ca_cert,
            options.proxy_ca_key,
        )

    def no_proxy(self, allow: list[Rule], managed: list[Rule]) -> no_proxy.NoProxy:
        """The variables that tell clients which hosts not to ask the proxy for."""
        compute = partial(
            no_proxy.compute,
            allowed=[each.pattern for each in allow],
            judged=[each.pattern for each in allow if each.endpoints or each.intercept],
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
            parse_endpoint_rule(each.value.method, each.value.path, each.source, crosses=self.around.nono_globs)
            for each in domain.endpoints
        )
        for host, source in _hosts(domain.host, domain.source):
            rule = parse_allow_rule(host, source, ports=ports, endpoints=endpoints)
            yield replace(rule, intercept=domain.intercept)

    def _route(self, name: Sourced[str]) -> Route | None:
        shipped, custom = network_policy().credentials, self.merged.custom_credentials
        if name.value in custom:
            definition = custom[name.value]
        elif name.value in shipped:
            definition = Sourced(msgspec.json.decode(shipped[name.value], type=CustomCredential), name.source)
        else:
            hint = nearest(name.value, {*custom, *shipped})
            self.problems.append(ConfigError(name.source, f"no credential is called {name.value!a}", hint=hint))
            return None
        further = [Sourced(each.value.endpoint, each.source) for each in self._endpoints(name.value)]
        try:
            return custom_route(name, definition, further, self.around)
        except ConfigError as error:
            self.problems.append(error)
            return None

    def _endpoints(self, service: str) -> list[Sourced[ServiceEndpoint]]:
        return [each for each in self.allow_endpoint if each.value.service == service]

    def _ca_variables(self) -> list[Sourced[str]]:
        said = self.merged.tls_intercept
        return [Sourced(each, f"{said.source}.ca_env_vars") for each in said.value.ca_env_vars] if said else []

    def _check_endpoints(self, names: set[str]) -> None:
        """Requests of a service that is not in use would be allowed by nobody."""
        for each in self.allow_endpoint:
            if (service := each.value.service) not in names:
                defined = {*self.merged.custom_credentials, *network_policy().credentials}
                hint = f"add --credential {service}" if service in defined else nearest(service, names or defined)
                self.problems.append(ConfigError(each.source, f"no service in use is called {service!a}", hint=hint))

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


def _seconds(duration: str | None, otherwise: int = Interception().ca_validity_s) -> int:
    return otherwise if duration is None else parse_duration(duration, "")
