"""Profiles that build upon each other, made one, with the source of every value. nono's rules:

`block` and `allow_http2` are on when any of them says so. Lists add up, without what is there already. `credentials`
that are left out are inherited, an empty list takes them away. Of `network_profile`, `upstream_proxy`,
`tls_intercept` and of each custom credential the last one holds. Endpoints of one host add up, and a host that has
any is no longer allowed as a whole: merging narrows, also within one list. So does interception.

Knows the shape of a profile. Must not know files, or what a value means beyond which host it is about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nono_ebpf.config.presets import preset_name
from nono_ebpf.config.schema import (
    AllowDomain,
    CredentialCapture,
    CredentialProvider,
    CredentialRoute,
    CustomCredential,
    Endpoint,
    TlsIntercept,
)
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.endpoints import ANY_METHOD
from nono_ebpf.policy.rules import parse_allow_rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from msgspec import UnsetType

    from nono_ebpf.config.validate import Document

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sourced(Generic[T]):
    """A value, and where it was written: `agent.json: network.allow_domain[3]`, or `--allow-domain`."""

    value: T
    source: str


@dataclass(frozen=True, slots=True)
class Domain:
    """An entry of `allow_domain`; without endpoints, any connection to it. `intercept`: one whose requests are seen.

    `source` is where it became what it is: its first endpoint's entry, or its own.
    """

    host: str
    source: str
    endpoints: tuple[Sourced[Endpoint], ...] = ()
    intercept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The network of profiles that were merged, and what its credentials refer to. None: nobody said anything."""

    block: Sourced[bool] | None = None
    allow_http2: Sourced[bool] | None = None
    network_profile: Sourced[str | None] | None = None
    allow_domain: tuple[Domain, ...] = ()
    deny_domain: tuple[Sourced[str], ...] = ()
    credentials: Sourced[tuple[Sourced[str], ...]] | None = None
    open_port: tuple[Sourced[int], ...] = ()
    open_port_range: tuple[Sourced[tuple[int, int]], ...] = ()
    listen_port: tuple[Sourced[int], ...] = ()
    listen_port_range: tuple[Sourced[tuple[int, int]], ...] = ()
    connect_port: tuple[Sourced[int], ...] = ()
    no_proxy: tuple[Sourced[str], ...] = ()
    custom_credentials: Mapping[str, Sourced[CustomCredential]] = field(default_factory=dict)
    tls_intercept: Sourced[TlsIntercept] | None = None
    upstream_proxy: Sourced[str] | None = None
    upstream_bypass: tuple[Sourced[str], ...] = ()
    upstream_auth: Sourced[str] | None = None
    credential_capture: Mapping[str, Sourced[CredentialCapture]] = field(default_factory=dict)
    credential_providers: Mapping[str, Sourced[CredentialProvider]] = field(default_factory=dict)
    credential_routes: tuple[Sourced[CredentialRoute], ...] = ()


def of_document(document: Document) -> Merged:
    """What one file says."""
    profile, network = document.profile, document.profile.network

    def one(key: str, value: Any) -> Any:  # noqa: ANN401  # a Sourced of what it is given
        return Sourced(value, document.place("network", key)) if value else None

    def many(key: str) -> tuple[Sourced[Any], ...]:
        values = getattr(network, key)
        return _once([Sourced(each, document.place("network", key, i)) for i, each in enumerate(values)])

    def named(*parts: str, values: Mapping[str, Any]) -> Mapping[str, Sourced[Any]]:
        return {name: Sourced(each, document.place(*parts, name)) for name, each in values.items()}

    routes = [Sourced(each, document.place("credential_routes", i)) for i, each in enumerate(profile.credential_routes)]
    return Merged(
        block=one("block", network.block),
        allow_http2=one("allow_http2", network.allow_http2),
        network_profile=_network_profile(document, network.network_profile),
        allow_domain=_narrowed(_domains(document, network.allow_domain)),
        credentials=_credentials(document, network.credentials),
        custom_credentials=named("network", "custom_credentials", values=network.custom_credentials),
        tls_intercept=one("tls_intercept", network.tls_intercept),
        upstream_proxy=one("upstream_proxy", network.upstream_proxy),
        upstream_auth=one("upstream_auth", network.upstream_auth),
        credential_capture=named("credential_capture", values=profile.credential_capture),
        credential_providers=named("credential_providers", values=profile.credential_providers),
        credential_routes=_by_name(routes),
        **{key: many(key) for key in _LISTS},
    )


def merge(base: Merged, child: Merged) -> Merged:
    """`base`, and what `child` adds to it and puts in its place."""
    return Merged(
        block=base.block or child.block,
        allow_http2=base.allow_http2 or child.allow_http2,
        network_profile=child.network_profile or base.network_profile,
        allow_domain=_narrowed([*base.allow_domain, *child.allow_domain]),
        credentials=_merged_credentials(base.credentials, child.credentials),
        custom_credentials={**base.custom_credentials, **child.custom_credentials},
        tls_intercept=child.tls_intercept or base.tls_intercept,
        upstream_proxy=child.upstream_proxy or base.upstream_proxy,
        upstream_auth=child.upstream_auth or base.upstream_auth,
        credential_capture={**base.credential_capture, **child.credential_capture},
        credential_providers={**base.credential_providers, **child.credential_providers},
        credential_routes=_by_name([*base.credential_routes, *child.credential_routes]),
        **{key: _once([*getattr(base, key), *getattr(child, key)]) for key in _LISTS},
    )


_LISTS = (
    *("deny_domain", "open_port", "open_port_range", "listen_port", "listen_port_range", "connect_port", "no_proxy"),
    "upstream_bypass",
)


def _once(values: Iterable[Sourced[T]]) -> tuple[Sourced[T], ...]:
    """The first of those with the same value."""
    found: dict[T, Sourced[T]] = {}
    for each in values:
        found.setdefault(each.value, each)
    return tuple(found.values())


def _by_name(routes: Iterable[Sourced[CredentialRoute]]) -> tuple[Sourced[CredentialRoute], ...]:
    return tuple({each.value.name: each for each in routes}.values())


def _network_profile(document: Document, name: str | UnsetType | None) -> Sourced[str | None] | None:
    if name is None or isinstance(name, str):
        return Sourced(name, document.place("network", "network_profile"))
    return None


def _credentials(document: Document, names: tuple[str, ...] | None) -> Sourced[tuple[Sourced[str], ...]] | None:
    if names is None:
        return None
    listed = [Sourced(each, document.place("network", "credentials", i)) for i, each in enumerate(names)]
    return Sourced(_once(listed), document.place("network", "credentials"))


def _merged_credentials(
    base: Sourced[tuple[Sourced[str], ...]] | None, child: Sourced[tuple[Sourced[str], ...]] | None
) -> Sourced[tuple[Sourced[str], ...]] | None:
    if child is None or base is None or not child.value:
        return base if child is None else child
    return Sourced(_once([*base.value, *child.value]), base.source)


def _domains(document: Document, entries: Iterable[str | AllowDomain]) -> list[Domain]:
    return [_domain(document, index, entry) for index, entry in enumerate(entries)]


def _domain(document: Document, index: int, entry: str | AllowDomain) -> Domain:
    way = ("network", "allow_domain", index)
    if isinstance(entry, str):
        return Domain(entry, document.place(*way))
    endpoints = [Sourced(each, document.place(*way, "endpoints", i)) for i, each in enumerate(entry.endpoints)]
    paths = [
        Sourced(Endpoint(ANY_METHOD, each), document.place(*way, "paths", i)) for i, each in enumerate(entry.paths)
    ]
    return Domain(entry.domain, document.place(*way), _once([*endpoints, *paths]), entry.intercept == "always")


def _narrowed(domains: Iterable[Domain]) -> tuple[Domain, ...]:
    """Each host once, with the endpoints of all its entries."""
    entries: dict[object, list[Domain]] = {}
    for each in domains:
        entries.setdefault(_identity(each.host), []).append(each)
    return tuple(map(_joined, entries.values()))


def _joined(entries: list[Domain]) -> Domain:
    """One host, which is what its first entry with endpoints made of it, or else the first that is intercepted."""
    ranked = sorted(entries, key=lambda each: (not each.endpoints, not each.intercept))
    endpoints = _once(chain.from_iterable(each.endpoints for each in entries))
    return Domain(entries[0].host, ranked[0].source, endpoints, any(each.intercept for each in entries))


def _identity(host: str) -> object:
    """What two spellings of one host have in common; a preset's name is its own."""
    if (name := preset_name(host)) is not None:
        return name
    try:
        rule = parse_allow_rule(host, "")
    except ConfigError:
        return host
    return rule.pattern, rule.ports, rule.names_port
