"""Where our answer is meant to be another than nono's, and why. Everywhere else the two must agree.

A difference speaks of what a case means, never of what either side said.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from cases import WEB, is_literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Case, Rule

# Denied here and not there: other clouds' metadata, this host in disguise, translations of 169.254.169.254, groups.
_ALWAYS_DENIED = [
    ip_network(text)
    for text in ("0.0.0.0/8", "100.100.100.200/32", "168.63.129.16/32", "224.0.0.0/4", "::/128", "64:ff9b::a9fe:0/112")
]
_METADATA_NAMES = frozenset({"metadata", "metadata.goog", "instance-data"})
_REWRITTEN = frozenset({"dot", "long", "upper", "mapped"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One reason to answer otherwise. `we_allow`: whether it is we who let the request through."""

    name: str
    why: str
    we_allow: bool
    holds: Callable[[Case], bool]


def _spelled(*spellings: str) -> Callable[[Case], bool]:
    return lambda case: case.spelling in spellings


def _writes_port(case: Case) -> bool:
    return any(rule.port == case.port for rule in case.covering())


def _names_service(case: Case) -> bool:
    """Whether a rule writes both the port and a host: `*:PORT` is every other one."""
    return any(rule.port == case.port and rule.pattern != "*" for rule in case.covering())


def _is_own(case: Case) -> bool:
    return any(address.is_loopback for address in case.addresses)


def _always_denied(case: Case) -> bool:
    return any(address in network for address in case.addresses for network in _ALWAYS_DENIED)


def _rewritten(case: Case, rules: tuple[Rule, ...]) -> bool:
    """Whether request and rule mean the same host, one of them not in the text that the other has."""
    relevant = [rule for rule in rules if rule.covers(case.host)]
    return bool(relevant) and (case.spelling in _REWRITTEN or any(rule.rewritten for rule in relevant))


def _denies_address(case: Case) -> bool:
    denied = {rule.pattern for rule in case.deny if rule.port in (None, case.port)}
    return not is_literal(case.host) and any(str(address) in denied for address in case.addresses)


DIFFERENCES = [
    Difference("empty list", "no rule means nothing, as everywhere else", False, lambda case: not case.allow),
    Difference(
        "not a rule",
        "what is no host rule is an error of the operator's, and nothing starts",
        False,
        lambda case: any(rule.pattern is None for rule in case.allow),
    ),
    Difference(
        "web ports",
        "a rule without a port means 80 and 443",
        False,
        lambda case: case.port not in {0, *WEB} and not _writes_port(case),
    ),
    Difference("metadata names", "every cloud's, resolved or not", False, lambda case: case.host in _METADATA_NAMES),
    Difference("metadata addresses", "every cloud's, and every form of this host", False, _always_denied),
    Difference(
        "own services",
        "a wildcard or a bare host does not open what listens on this machine's loopback",
        False,
        lambda case: _is_own(case) and not _names_service(case),
    ),
    Difference(
        "rebinding",
        "no name that DNS controls leads to loopback",
        False,
        lambda case: _is_own(case) and not is_literal(case.host) and case.host != "localhost",
    ),
    Difference("denied address", "a denied address is denied under every name", False, _denies_address),
    Difference(
        "denied in other words",
        "a deny rule holds however host and rule are written",
        False,
        lambda case: _rewritten(case, case.deny),
    ),
    Difference("userinfo", "it hides the host (RFC 9110 section 4.2.4)", False, _spelled("userinfo", "password")),
    Difference("no host name", "labels that no host has", False, _spelled("dots", "first dot", "hyphen")),
    Difference(
        "IPv4 of inet_aton(3)",
        "an address to some clients and a name to others",
        False,
        _spelled("decimal", "hexadecimal", "octal", "short"),
    ),
    Difference("zone", "RFC 4007: it means something on one host only", False, _spelled("zone")),
    Difference("bare IPv6", "where the address ends is a guess", False, _spelled("bare")),
    Difference("no port 0", "there is none", False, _spelled("port 0")),
    Difference("ASCII", "RFC 9112: a request line is ASCII", False, lambda case: not case.authority.isascii()),
    Difference(
        "IPv6 without a port",
        "a bracket ends an address as well as a colon does; there the connection is closed",
        True,
        lambda case: case.spelling == "no port" and ":" in case.host,
    ),
    Difference(
        "allowed in other words",
        "an allow rule holds however host and rule are written",
        True,
        lambda case: _rewritten(case, case.allow),
    ),
]
