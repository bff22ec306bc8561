"""The URL of a service that a credential is for: https, or plain http to this machine's loopback.

Knows which host and port it stands for, and which path; a leading `*.` stands for every name below. Sources: RFC 3986
§3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nono_ebpf.authority import host_address, split_port
from nono_ebpf.errors import ConfigError, InvalidAuthority
from nono_ebpf.policy.endpoints import parse_path
from nono_ebpf.policy.rules import Rule, parse_allow_rule

if TYPE_CHECKING:
    from collections.abc import Mapping

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[^?#]*)(?P<more>.*)", re.DOTALL
)
_PORTS: Mapping[str, int] = {"https": 443, "http": 80}
_EXPECTED = "write https://HOST[:PORT][/PATH], or http:// for a service on this machine's loopback"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a service is. `base_path`: what is behind the host, in canonical form, without a slash at its end."""

    host: Rule
    tls: bool
    base_path: str


def parse_upstream(text: str, source: str, *, name: str = "") -> Upstream:
    """What `text` stands for; its host's rule has the text `name`. Raises ConfigError, whose `where` is `source`."""
    match = _URL.fullmatch(text)
    if match is None:
        raise ConfigError(source, f"{text[:300]!a} is no URL", hint=_EXPECTED)
    scheme, authority = match["scheme"].lower(), match["authority"]
    if scheme not in _PORTS:
        raise ConfigError(source, f"{scheme[:60]!a} is no scheme of a service", hint=_EXPECTED)
    if "@" in authority:
        raise ConfigError(source, "it has credentials in it", hint="name where they are kept: credential_key")
    if match["more"]:
        raise ConfigError(source, f"{text[:300]!a} has a query or a fragment", hint=_EXPECTED)
    rule = _rule(authority, _PORTS[scheme], source, name or text)
    if scheme == "http" and not _is_loopback(rule.pattern):
        raise ConfigError(source, f"{text[:300]!a} would send the credential in clear", hint=_EXPECTED)
    return Upstream(rule, scheme == "https", _base_path(match["rest"], source))


def parse_origin(text: str, source: str, *, name: str = "") -> Upstream:
    """The same for an https URL without a path."""
    found = parse_upstream(text, source, name=name)
    if not re.fullmatch(r"https://[^/]*/?", text, re.IGNORECASE):
        raise ConfigError(source, f"{text[:300]!a} is no https origin", hint="write https://HOST[:PORT]")
    return found


def _base_path(text: str, source: str) -> str:
    path = parse_path(text or "/")
    if path is None or len(path.readings) > 1:
        raise ConfigError(source, f"the path {text[:300]!a} has more than one meaning, or none", hint=_EXPECTED)
    return path.target.rstrip("/")


def _rule(authority: str, port: int, source: str, name: str) -> Rule:
    if authority == "*" or authority.startswith("*:"):
        raise ConfigError(source, "it stands for every host", hint=_EXPECTED)
    try:
        host, written = split_port(authority)
    except InvalidAuthority as error:
        raise ConfigError(source, f"{authority[:300]!a} is no host: {error.problem}", hint=_EXPECTED) from error
    rule = parse_allow_rule(host, source)
    return Rule(rule.pattern, frozenset({written or port}), name, source, names_port=True)


def _is_loopback(pattern: str) -> bool:
    if pattern.startswith("*."):
        return False
    address = host_address(pattern)
    return address.is_loopback if address else pattern == "localhost"
