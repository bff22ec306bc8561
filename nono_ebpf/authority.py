"""The one parser and the one canonical form of a host and of host:port.

Every name and address that reaches a decision passes through here: CONNECT targets, absolute-form URIs, Host
fields, TLS server names, DNS questions, and the operator's own rules. Matcher, resolver and audit log
therefore see the same characters. What could be read in two ways is refused, never repaired.

Must not know rules, sockets or DNS.

Sources: RFC 3986 §3.2.2 (host, brackets), RFC 1035 §2.3.4 (lengths), RFC 5890-5893 and UTS #46
(internationalised names), RFC 5952 (IPv6 text), WHATWG URL §3.5 "ends in a number" (a name that some client
would take for an IPv4 address).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import idna

from nono_ebpf.errors import InvalidAuthority

if TYPE_CHECKING:
    from nono_ebpf.model import IPAddress

MAX_NAME_LENGTH = 253  # RFC 1035 §2.3.4: 255 octets on the wire, without the root's length octet

# `_` is not a host name character (RFC 952), but service names in use have it: _dmarc, my_bucket.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_LDH_LABEL = re.compile(_LABEL)
# The last label begins with a letter, so nothing that matches can be taken for an address.
_LDH_NAME = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9_-]{{0,61}}[a-z0-9_])?")
_LIKE_A_NUMBER = re.compile(r"[0-9]+|0x.*")
_IPV6_TEXT = re.compile(r"[0-9A-Fa-f:.]+")
# No leading zero: one spelling for each port.
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Authority:
    """A canonical host and a port (RFC 9110 §7.2)."""

    host: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def canonical_host(text: str) -> str:
    """The one spelling of the host `text`: a lower-case A-label name, a dotted quad, or RFC 5952 IPv6 text.

    One trailing dot is dropped, IPv4-mapped IPv6 becomes IPv4, IPv6 may stand in brackets.
    Raises InvalidAuthority: `text` has no single meaning as a host.
    """
    if text.isascii():
        name = text.lower().removesuffix(".")
        if len(name) <= MAX_NAME_LENGTH and _LDH_NAME.fullmatch(name) and "xn--" not in name:
            return name
    return _canonical_by_rule(text)


def host_address(host: str) -> IPAddress | None:
    """The address that the canonical `host` is, or None when it is a name."""
    if ":" in host:
        return IPv6Address(host)
    # No canonical name has a last label of digits alone.
    return IPv4Address(host) if host.rpartition(".")[2].isdigit() else None


def parse_authority(text: str, default_port: int | None) -> Authority:
    """The host and port that `text` names; with `default_port` None the port must be written.

    Raises InvalidAuthority: malformed, or ambiguous (IPv6 without brackets, userinfo, a zone id).
    """
    host, port = split_port(text)
    chosen = default_port if port is None else port
    if chosen is None:
        raise InvalidAuthority(text, "a port is required")
    return Authority(canonical_host(host), chosen)


def split_port(text: str) -> tuple[str, int | None]:
    """`text` cut into the host as written (brackets kept) and its port, None when there is none.

    The host is not yet judged. Raises InvalidAuthority: the cut is ambiguous, or the port is not 1-65535.
    """
    host, colon, port = _cut_after_bracket(text) if text.startswith("[") else text.partition(":")
    if not colon:
        return host, None
    if ":" in port:
        raise InvalidAuthority(text, "it has more than one colon; an IPv6 address has to stand in brackets")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise InvalidAuthority(text, "the port is not a number from 1 to 65535")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """`host:port` for a canonical host, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cut_after_bracket(text: str) -> tuple[str, str, str]:
    host, bracket, rest = text.partition("]")
    if not bracket or (rest and not rest.startswith(":")):
        raise InvalidAuthority(text, "the brackets do not enclose an address")
    return host + bracket, rest[:1], rest[1:]


def _canonical_by_rule(text: str) -> str:
    """`canonical_host` for what is not a plain ASCII name."""
    # Longest first: a name, its last dot. The mapping below can only be slow on long text.
    if not 0 < len(text) <= MAX_NAME_LENGTH + 1:
        raise InvalidAuthority(text, f"a host has 1 to {MAX_NAME_LENGTH} characters")
    if text.startswith("[") or ":" in text:
        return _ipv6(text)
    name = _mapped(text).removesuffix(".")
    labels = name.split(".")
    if _LIKE_A_NUMBER.fullmatch(labels[-1]):
        return _ipv4(text, name)
    canonical = ".".join([_a_label(text, label) for label in labels])
    if len(canonical) > MAX_NAME_LENGTH:
        raise InvalidAuthority(text, f"a host has 1 to {MAX_NAME_LENGTH} characters")
    return canonical


def _mapped(text: str) -> str:
    """`text` after the UTS #46 mapping: case, width, compatibility forms, the four dots."""
    try:
        return idna.uts46_remap(text, std3_rules=False)
    except UnicodeError as error:
        raise InvalidAuthority(text, "it has characters that no host name may have") from error


def _a_label(text: str, label: str) -> str:
    """The ASCII form of one mapped label. The grammar is STD 3 (RFC 1123 §2.1) and `_`."""
    if not label:
        raise InvalidAuthority(text, "it has an empty label")
    if label.isascii() and not label.startswith("xn--"):
        # Hyphens in third and fourth place are left alone: r3---sn-4g5e6nez.googlevideo.com exists.
        if not _LDH_LABEL.fullmatch(label):
            raise InvalidAuthority(text, "a label is not 1 to 63 of a-z, 0-9, - and _, with - inside only")
        return label
    try:
        return idna.alabel(label).decode("ascii")
    except (UnicodeError, ValueError) as error:
        raise InvalidAuthority(text, "it is not a valid internationalised name (IDNA 2008)") from error


def _ipv4(text: str, name: str) -> str:
    try:
        return str(IPv4Address(name))
    except AddressValueError as error:
        # inet_aton(3) reads 2130706433, 0x7f.1 and 0177.0.0.1 as addresses; others take them for names.
        raise InvalidAuthority(text, "it is neither a name nor four decimal numbers") from error


def _ipv6(text: str) -> str:
    bracketed = text.startswith("[") and text.endswith("]")
    inner = text[1:-1] if bracketed else text
    try:
        # IPv6Address would accept a zone id (RFC 4007 §11), which means something on one host only.
        address = IPv6Address(inner) if _IPV6_TEXT.fullmatch(inner) else None
    except AddressValueError:
        address = None
    if address is None:
        raise InvalidAuthority(text, "it is not an IPv6 address")
    return str(address.ipv4_mapped or address)
