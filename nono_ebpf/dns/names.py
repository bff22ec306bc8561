"""Which name each address of one sandbox stands for.

A program that connects shows only an address; the host rules are about names. So every address that the
sandbox is told belongs to exactly one name. The first name to get a real address holds it; another name with
the same real address (a CDN's, say) gets a synthetic one, which stands for it here and nowhere else.

Knows addresses and names. Must not know policy, DNS messages or time: an address is never taken back, since a
client may hold it for as long as it runs.

Synthetic addresses come from 198.18.0.0/15 (RFC 2544, never routed) and a ULA /96 (RFC 4193).
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nono_ebpf.model import IPAddress

V4_POOL = IPv4Network("198.18.0.0/15")
V6_POOL = IPv6Network("fd6e:6f6e:6f00:1::/96")

# An entry is a few hundred bytes, so a hostile program can make the table this side of 20 MB.
LIMIT = 65536
# Of these, what one name gets, however its answers change.
_OF_ONE_NAME = 1024
# Of these, what names cannot use up that a program may invent.
_RESERVED_SHARE = 8


class _Pool:
    """Unused addresses of one network, each handed out once, lowest first."""

    def __init__(self, network: IPv4Network | IPv6Network) -> None:
        self._network = network
        # 0 is the network itself (RFC 4291 §2.6.1: the routers' anycast address), 1 is what the sandbox's own
        # interface carries, and the last one is IPv4's broadcast address.
        self._unused = iter(range(2, network.num_addresses - 1))

    def __contains__(self, address: IPAddress) -> bool:
        return address in self._network

    def take(self) -> IPAddress | None:
        index = next(self._unused, None)
        return None if index is None else self._network[index]


class NameTable:
    """The two-way table of one sandbox. Both directions are one dictionary access.

    `limit` bounds the number of addresses given; it is never exceeded, and nothing is ever evicted.
    """

    def __init__(self, v4_pool: IPv4Network = V4_POOL, v6_pool: IPv6Network = V6_POOL, limit: int = LIMIT) -> None:
        self._pools: dict[int, _Pool] = {4: _Pool(v4_pool), 6: _Pool(v6_pool)}
        self._limit = limit
        self._name_of: dict[IPAddress, str] = {}
        self._given: dict[tuple[str, IPAddress], IPAddress] = {}
        self._invented: dict[tuple[str, int], IPAddress] = {}
        self._held: Counter[str] = Counter()

    def name_of(self, address: IPAddress) -> str | None:
        """The name this sandbox was given `address` for; None when it was never given."""
        return self._name_of.get(address)

    def give(
        self, name: str, addresses: Sequence[IPAddress], *, invented: bool = False
    ) -> tuple[IPAddress, ...] | None:
        """What to tell the sandbox for the real `addresses` of the canonical `name`, in their order.

        `invented`: no rule spells the name out, so there may be any number of its kind; the last part of the table is
        not for them.
        The same name and real address always give the same answer. None when the table or a pool is
        exhausted: then nothing may be answered, because an address without a name would be judged as a bare
        address. Addresses given until then stay given.
        """
        given = []
        limit = self._limit_for(invented=invented)
        for real in addresses:
            if (address := self._given.get((name, real)) or self._add(name, real, limit)) is None:
                return None
            given.append(address)
        return tuple(given)

    def give_synthetic(self, name: str, version: int, *, invented: bool = False) -> tuple[IPAddress, ...] | None:
        """What to tell the sandbox for a `name` of which no real address is known; 4 or 6. Else as `give`."""
        address = self._invented.get((name, version))
        if address is None:
            address = self._take(name, None, version, self._limit_for(invented=invented))
            if address is None:
                return None
            self._invented[name, version] = address
        return (address,)

    def _limit_for(self, *, invented: bool) -> int:
        return self._limit - self._limit // _RESERVED_SHARE if invented else self._limit

    def _add(self, name: str, real: IPAddress, limit: int) -> IPAddress | None:
        address = self._take(name, real if self._free(real) else None, real.version, limit)
        if address is not None:
            self._given[name, real] = address
        return address

    def _take(self, name: str, real: IPAddress | None, version: int, limit: int) -> IPAddress | None:
        """Give `real` away, or the next synthetic address of that version."""
        if len(self._name_of) >= limit or self._held[name] >= _OF_ONE_NAME:
            return None
        address = real or self._pools[version].take()
        if address is not None:
            self._name_of[address] = name
            self._held[name] += 1
        return address

    def _free(self, real: IPAddress) -> bool:
        # Inside the sandbox a loopback address means the sandbox's own loopback, which is never redirected:
        # a name that the operator lets reach the host's loopback needs an address that is.
        return not (real in self._name_of or real.is_loopback or real in self._pools[real.version])


def reverse_name(address: IPAddress) -> str:
    """The in-addr.arpa or ip6.arpa name of `address` (RFC 1035 §3.5, RFC 3596 §2.5)."""
    return address.reverse_pointer


def address_of_reverse_name(host: str) -> IPAddress | None:
    """The address a canonical reverse name stands for; None for any other name, complete or not."""
    labels = host.split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"]:
            address: IPAddress = IPv4Address(".".join(reversed(labels[:-2])))
        elif labels[-2:] == ["ip6", "arpa"] and all(len(label) == 1 for label in labels[:-2]):
            address = IPv6Address(int("".join(reversed(labels[:-2])), 16))
        else:
            return None
    except ValueError:
        return None
    # Compared with the one right spelling, so that short or padded forms are no address.
    return address if reverse_name(address) == host else None
