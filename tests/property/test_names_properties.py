"""For any sequence of questions, the name table is a function in both directions."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from hypothesis import given
from hypothesis import strategies as st

from nono_ebpf.dns.names import NameTable, address_of_reverse_name, reverse_name

ADDRESSES = [
    ip_address(text)
    for text in ("203.0.113.1", "203.0.113.2", "127.0.0.1", "198.18.0.3", "2001:db8::1", "::1", "fd00::3")
]
QUESTIONS = st.lists(st.tuples(st.sampled_from("abcd"), st.lists(st.sampled_from(ADDRESSES), max_size=4)), max_size=30)


@given(QUESTIONS, st.integers(0, 12))
def test_every_address_stands_for_one_name_and_stays_so(
    questions: list[tuple[str, list[IPv6Address]]], limit: int
) -> None:
    """In any order of questions no address changes its name, none is loopback, and the bound holds."""
    names = NameTable(IPv4Network("198.18.0.0/29"), IPv6Network("fd00::/125"), limit)
    owner: dict[object, str] = {}
    answered: dict[object, object] = {}
    for name, reals in questions:
        addresses = names.give(name, reals)
        if addresses is None:
            continue
        assert len(addresses) == len(reals)
        for real, address in zip(reals, addresses, strict=True):
            assert names.name_of(address) == name == owner.setdefault(address, name)
            assert answered.setdefault((name, real), address) == address
            assert address.version == real.version
            assert not address.is_loopback
    assert len(names._name_of) <= limit
    assert all(names.name_of(address) == name for address, name in owner.items())


@given(st.ip_addresses())
def test_reverse_names_are_a_bijection(address: IPv6Address) -> None:
    """Parsing is the inverse of writing."""
    assert address_of_reverse_name(reverse_name(address)) == address


@given(st.text(alphabet="0123456789abcdefg._-", max_size=80))
def test_reverse_parsing_always_answers(prefix: str) -> None:
    """Any text gives an address with that very spelling, or None."""
    for host in (prefix, f"{prefix}.in-addr.arpa", f"{prefix}.ip6.arpa"):
        address = address_of_reverse_name(host)
        assert address is None or reverse_name(address) == host
