"""What options say about the network, as one more profile on top of those that were read."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from nono_ebpf.config.kinds import check_allowed, check_denied
from nono_ebpf.config.merge import Domain, Merged, Sourced, merge
from nono_ebpf.config.presets import find_network_profile
from nono_ebpf.config.schema import Endpoint
from nono_ebpf.credentials.references import parse_readable
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.endpoints import ANY_METHOD, parse_endpoint_rule
from nono_ebpf.policy.rules import parse_allow_rule
from nono_ebpf.policy.upstream_proxy import parse_bypass, parse_upstream_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# The value of --upstream-proxy that stands for what the environment names.
FROM_ENVIRONMENT = "env"
_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """The options of `run` and `why` that say what may be reached and how, by their names on the command line."""

    profile: str | None = None
    extends: tuple[str, ...] = ()
    network_profile: str | None = None
    allow_domain: tuple[str, ...] = ()
    deny_domain: tuple[str, ...] = ()
    block_net: bool = False
    allow_net: bool = False
    upstream_proxy: str | None = None
    upstream_bypass: tuple[str, ...] = ()
    upstream_auth: str | None = None
    open_port: tuple[int, ...] = ()
    listen_port: tuple[int, ...] = ()
    allow_connect_port: tuple[int, ...] = ()
    nono_globs: bool = False
    credential: tuple[str, ...] = ()
    allow_endpoint: tuple[str, ...] = ()
    intercept: tuple[str, ...] = ()
    shared_secrets: bool = False
    proxy_ca_cert: str | None = None
    proxy_ca_key: str | None = None
    proxy_ca_validity: int | None = None

    @classmethod
    def of(cls, options: object) -> Overrides:
        """Those of them that parsed options have, lists as tuples."""
        given: dict[str, Any] = {}
        for each in fields(cls):
            if hasattr(options, each.name):
                value = getattr(options, each.name)
                given[each.name] = tuple(value) if isinstance(value, list) else value
        return cls(**given)


def merged_with(base: Merged, options: Overrides, problems: list[ConfigError]) -> Merged:
    """`base`, and what `options` add to it and put in its place, but for what is added to `problems`."""
    sound = _Sound(problems)
    return merge(
        base,
        Merged(
            network_profile=sound.one(options.network_profile, find_network_profile, "--network-profile"),
            allow_domain=(*sound.domains(options.allow_domain), *sound.intercepted(options.intercept)),
            deny_domain=sound.many(options.deny_domain, check_denied, "--deny-domain"),
            open_port=_ports(options.open_port, "--open-port"),
            listen_port=_ports(options.listen_port, "--listen-port"),
            connect_port=_ports(options.allow_connect_port, "--allow-connect-port"),
            upstream_proxy=sound.one(_address(options), parse_upstream_proxy, "--upstream-proxy"),
            upstream_bypass=sound.many(options.upstream_bypass, parse_bypass, "--upstream-bypass"),
            upstream_auth=sound.one(options.upstream_auth, parse_readable, "--upstream-auth"),
            credentials=_credentials(options.credential),
        ),
    )


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """A request that a service in use is for."""

    service: str
    endpoint: Endpoint


def service_endpoints(options: Overrides, problems: list[ConfigError]) -> list[Sourced[ServiceEndpoint]]:
    """Those of `--allow-endpoint`, but for what is added to `problems`."""
    return _Sound(problems).endpoints(options.allow_endpoint)


def parse_service_endpoint(text: str, source: str) -> ServiceEndpoint:
    """`SERVICE:METHOD:/path`. Raises ConfigError: it is nothing of that form."""
    service, _, rest = text.partition(":")
    method, _, path = rest.partition(":")
    if not (service and method and path.startswith("/")):
        hint = "write SERVICE:METHOD:/path, as in github:GET:/repos/*/issues, with * for any method"
        raise ConfigError(source, f"{text[:300]!a} names no requests of a service", hint=hint)
    parse_endpoint_rule(method, path, source)
    return ServiceEndpoint(service, Endpoint(method, path))


def parse_allowed(text: str, source: str) -> Domain:
    """A host, or a URL: on its scheme's port alone unless it has one, and with its path alone unless it has none.

    Raises ConfigError: neither.
    """
    match = _URL.fullmatch(text)
    if match is None:
        check_allowed(text, source)
        return Domain(text, source)
    port = _PORTS.get(match["scheme"].lower())
    if port is None or match["rest"] or "@" in match["authority"]:
        hint = "write http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH without a query"
        raise ConfigError(source, "the URL says more than a host and a path", hint=hint)
    host = (
        match["authority"]
        if parse_allow_rule(match["authority"], source).names_port
        else f"{match['authority']}:{port}"
    )
    if match["path"] in {"", "/"}:
        return Domain(host, source)
    parse_endpoint_rule(ANY_METHOD, match["path"], source)
    return Domain(host, source, (Sourced(Endpoint(ANY_METHOD, match["path"]), source),))


class _Sound:
    """What passes its check; the others' mistakes are collected."""

    def __init__(self, problems: list[ConfigError]) -> None:
        self._problems = problems

    def one(self, value: str | None, check: Callable[[str, str], object], source: str) -> Sourced[Any] | None:
        found = self.many([] if value is None else [value], check, source)
        return found[0] if found else None

    def many(self, values: Sequence[str], check: Callable[[str, str], object], source: str) -> tuple[Sourced[str], ...]:
        return tuple(Sourced(value, source) for value, _ in self._checked(values, check, source))

    def domains(self, values: Sequence[str]) -> Iterator[Domain]:
        yield from (domain for _, domain in self._checked(values, parse_allowed, "--allow-domain"))

    def intercepted(self, values: Sequence[str]) -> Iterator[Domain]:
        source = "--intercept"
        yield from (Domain(host, source, intercept=True) for host, _ in self._checked(values, check_allowed, source))

    def endpoints(self, values: Sequence[str]) -> list[Sourced[ServiceEndpoint]]:
        source = "--allow-endpoint"
        return [Sourced(found, source) for _, found in self._checked(values, parse_service_endpoint, source)]

    def _checked(
        self, values: Sequence[str], check: Callable[[str, str], Any], source: str
    ) -> Iterator[tuple[str, Any]]:
        for value in values:
            try:
                yield value, check(value, source)
            except ConfigError as error:
                self._problems.append(error)


def _address(options: Overrides) -> str | None:
    return None if options.upstream_proxy == FROM_ENVIRONMENT else options.upstream_proxy


def _credentials(names: Sequence[str]) -> Sourced[tuple[Sourced[str], ...]] | None:
    """None where the option is not used: an empty list would take inherited ones away."""
    source = "--credential"
    return Sourced(tuple(Sourced(name, source) for name in dict.fromkeys(names)), source) if names else None


def _ports(ports: Sequence[int], source: str) -> tuple[Sourced[int], ...]:
    return tuple(Sourced(port, source) for port in ports)
