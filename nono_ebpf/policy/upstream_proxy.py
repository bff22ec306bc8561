"""The corporate proxy that permitted connections are sent through, and the hosts it is not asked for.

Knows how both are written. Must not know its credentials, or how it is spoken to. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

from nono_ebpf.authority import canonical_host, host_address, join_host_port, parse_authority
from nono_ebpf.errors import ConfigError, InvalidAuthority

if TYPE_CHECKING:
    from collections.abc import Iterable

_EXPECTED_PROXY = "write HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS to the proxy"
_EXPECTED_BYPASS = "write a host, *.domain, *, an address or a network such as 10.0.0.0/8"


@dataclass(frozen=True, slots=True)
class Bypass:
    """Hosts that are dialled directly: themselves, names below (without their leading `*.`), networks, or all."""

    hosts: frozenset[str] = frozenset()
    below: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    everything: bool = False

    def covers(self, host: str) -> bool:
        """Whether the canonical `host` is one of them. A name is not looked up: networks are for literal addresses."""
        if self.everything or host in self.hosts:
            return True
        if address := host_address(host):
            return any(address in _network(each) for each in self.networks)
        return bool(self.below) and any(parent in self.below for parent in _parents(host))

    def __or__(self, other: Bypass) -> Bypass:
        """Both."""
        return Bypass(
            self.hosts | other.hosts,
            self.below | other.below,
            self.networks | other.networks,
            self.everything or other.everything,
        )


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """An HTTP proxy that is spoken to by CONNECT. `host` is canonical; `tls`: inside TLS."""

    host: str
    port: int
    tls: bool = False
    bypass: Bypass = field(default_factory=Bypass)

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)

    def carries(self, host: str) -> bool:
        """Whether connections to the canonical `host` go through it. This machine's own loopback never does."""
        address = host_address(host)
        loopback = address.is_loopback if address else host == "localhost" or host.endswith(".localhost")
        return not loopback and not self.bypass.covers(host)


def parse_upstream_proxy(text: str, source: str) -> UpstreamProxy:
    """`text` as a proxy without a bypass. Raises ConfigError, whose `where` is `source`."""
    if "@" in text or "%" in text:  # escaped, too; and no other message repeats what may be a password
        raise ConfigError(source, "it has credentials in it", hint="name where they are kept: --upstream-auth REF")
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in {"http", "https"}:
        raise ConfigError(source, f"{scheme!a} is no scheme of an HTTP proxy", hint=_EXPECTED_PROXY)
    try:
        authority = parse_authority(rest.removesuffix("/"), None)
    except InvalidAuthority as error:
        raise ConfigError(source, f"{text!a} is not a proxy: {error.problem}", hint=_EXPECTED_PROXY) from error
    return UpstreamProxy(authority.host, authority.port, tls=scheme.lower() == "https")


def parse_bypass(text: str, source: str) -> Bypass:
    """One entry of a bypass list. Raises ConfigError, whose `where` is `source`."""
    if text == "*":
        return Bypass(everything=True)
    try:
        if "/" in text:
            return Bypass(networks=frozenset({str(ip_network(text))}))
        if text.startswith(("*.", ".")):
            return Bypass(below=frozenset({_name(text.removeprefix("*").removeprefix("."))}))
        return Bypass(hosts=frozenset({canonical_host(text)}))
    except InvalidAuthority as error:
        raise ConfigError(source, f"{text!a} is not a host: {error.problem}", hint=_EXPECTED_BYPASS) from error
    except ValueError as error:
        raise ConfigError(source, f"{text!a} is not a network: {error}", hint=_EXPECTED_BYPASS) from error


def joined(entries: Iterable[Bypass]) -> Bypass:
    """All of them."""
    whole = Bypass()
    for each in entries:
        whole |= each
    return whole


def _name(text: str) -> str:
    domain = canonical_host(text)
    if host_address(domain):
        raise InvalidAuthority(text, "an address has no names below it")
    return domain


def _parents(host: str) -> Iterable[str]:
    cut = host.find(".")
    while cut >= 0:
        yield host[cut + 1 :]
        cut = host.find(".", cut + 1)


@cache
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)
