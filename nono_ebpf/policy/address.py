"""The destinations that no rule can open: cloud metadata services, link-local and unspecified addresses.

Knows what an address means, in every spelling that hides IPv4 inside IPv6. Must not know rules or names.

Sources: the IANA special-purpose address registries (RFC 6890); for the embeddings RFC 4291 §2.5.5
(compatible, mapped), RFC 6052 and RFC 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 2765 §2.1
(IPv4-translated) and RFC 5214 §6.1 (ISATAP).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nono_ebpf.model import IPAddress

_METADATA = "a cloud metadata service"

# Names that only a cloud's own resolver answers, always with its metadata service. Canonical form.
ALWAYS_DENIED_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    }
)

_DENIED: dict[str, str] = {
    "0.0.0.0/8": "an unspecified address, which reaches this host",
    "100.100.100.200/32": _METADATA,  # Alibaba Cloud
    "168.63.129.16/32": _METADATA,  # Azure's wire server
    "169.254.0.0/16": "a link-local address, where cloud metadata services live",
    "192.0.0.192/32": _METADATA,  # Oracle Cloud, classic
    "224.0.0.0/4": "a multicast address",
    "255.255.255.255/32": "the broadcast address",
    "::/128": "an unspecified address, which reaches this host",
    "64:ff9b:1::/48": "in the local-use NAT64 prefix, which can stand for any IPv4 address",
    "fd00:100::100:200/128": _METADATA,  # Alibaba Cloud
    "fd00:42::42/128": _METADATA,  # Scaleway
    "fd00:a9fe:a9fe::1/128": _METADATA,  # Akamai (Linode)
    "fd00:c1::a9fe:a9fe/128": _METADATA,  # Oracle Cloud
    "fd00:ec2::/32": _METADATA,  # AWS
    "fd20:ce::254/128": _METADATA,  # Google Cloud
    "fe80::/10": "a link-local address, where cloud metadata services live",
    "ff00::/8": "a multicast address",
}


# (mask, value, reason): an integer AND for each, since every connection passes here.
_Table = tuple[tuple[int, int, str], ...]


def _table(kind: type[IPv4Network] | type[IPv6Network], version: int) -> _Table:
    networks = [(kind(text), why) for text, why in _DENIED.items() if (":" in text) == (version == 6)]
    return tuple((int(net.netmask), int(net.network_address), why) for net, why in networks)


_V4 = _table(IPv4Network, 4)
_V6 = _table(IPv6Network, 6)

# Where the embedded address lies: (bits to its right, bits to flip). Teredo carries the server, and the
# client inverted (RFC 4380 §4).
_Place = tuple[tuple[int, int], ...]
_LOW: _Place = ((0, 0),)
_EMBEDDINGS: tuple[tuple[int, int, _Place], ...] = tuple(
    (int(net.netmask), int(net.network_address), place)
    for net, place in (
        (IPv6Network("::/96"), _LOW),
        (IPv6Network("::ffff:0:0/96"), _LOW),
        (IPv6Network("::ffff:0:0:0/96"), _LOW),
        (IPv6Network("64:ff9b::/96"), _LOW),
        (IPv6Network("2002::/16"), ((80, 0),)),
        (IPv6Network("2001::/32"), ((64, 0), (0, 0xFFFFFFFF))),
    )
)
# ISATAP is an interface identifier under any prefix; the bit 0x02000000 says "globally unique".
_ISATAP_MASK, _ISATAP = 0xFDFFFFFF << 32, 0x00005EFE << 32
_LOOPBACK_V6 = 1


def always_denied(ip: IPAddress) -> str | None:
    """Why `ip` is denied whatever the rules say, as the end of "it is …"; None when the rules decide."""
    if ip.version == 4:
        return _listed(int(ip), _V4)
    return _listed(int(ip), _V6) or _embedded_reason(ip)


def embedded_ipv4(ip: IPv6Address) -> tuple[IPv4Address, ...]:
    """Every IPv4 address that `ip` carries and that a translator or tunnel would send packets to."""
    value = int(ip)
    places = [each for place in _carriers(value) for each in place]
    return tuple([IPv4Address(((value >> shift) & 0xFFFFFFFF) ^ flip) for shift, flip in places])


def _carriers(value: int) -> list[_Place]:
    if value == _LOOPBACK_V6:
        return []
    places = [place for mask, net, place in _EMBEDDINGS if value & mask == net]
    return [*places, _LOW] if value & _ISATAP_MASK == _ISATAP else places


def _embedded_reason(ip: IPAddress) -> str | None:
    if not isinstance(ip, IPv6Address):
        return None
    for inner in embedded_ipv4(ip):
        if why := "a loopback address" if inner.is_loopback else _listed(int(inner), _V4):
            return f"a form of {inner}, {why}"
    return None


def _listed(value: int, table: _Table) -> str | None:
    for mask, net, why in table:
        if value & mask == net:
            return why
    return None
