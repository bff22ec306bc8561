"""The table of which name each address of a sandbox stands for."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest

from nono_ebpf.dns.names import V4_POOL, V6_POOL, NameTable, address_of_reverse_name, reverse_name

A, B, C = (ip_address(text) for text in ("203.0.113.1", "203.0.113.2", "2001:db8::1"))


def test_a_real_address_is_given_as_it_is_while_it_is_free() -> None:
    """The first name with an address gets the real one, in the order asked for, and the way back is known."""
    names = NameTable()
    assert names.give("one.example", [C, A, B]) == (C, A, B)
    assert [names.name_of(each) for each in (A, B, C)] == ["one.example"] * 3


def test_a_second_name_on_an_address_gets_a_synthetic_one() -> None:
    """Two names on one CDN address stay two names, for both families, and for ever."""
    names = NameTable()
    names.give("one.example", [A, C])
    given = names.give("two.example", [A, C])
    assert given is not None
    four, six = given
    assert four in V4_POOL
    assert six in V6_POOL
    assert [names.name_of(each) for each in (four, six)] == ["two.example"] * 2
    assert [names.name_of(each) for each in (A, C)] == ["one.example"] * 2


def test_the_same_question_has_the_same_answer() -> None:
    """A program that asks again gets the address it may already be using, real or synthetic."""
    names = NameTable()
    names.give("one.example", [A])
    first = names.give("two.example", [A])
    assert names.give("two.example", [A]) == first
    assert names.give("one.example", [A]) == (A,)
    third = names.give("three.example", [A])
    assert third not in (first, (A,))


def test_an_address_never_given_has_no_name() -> None:
    """An address the sandbox made up, or got elsewhere, is a bare address."""
    names = NameTable()
    names.give("one.example", [A])
    assert names.name_of(B) is None
    assert names.name_of(V4_POOL[7]) is None


@pytest.mark.parametrize("text", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_is_never_given(text: str) -> None:
    """Inside the sandbox it would mean the sandbox's own loopback, past the redirect."""
    names = NameTable()
    given = names.give("db.internal", [ip_address(text)])
    assert given is not None
    assert not given[0].is_loopback
    assert names.name_of(given[0]) == "db.internal"


@pytest.mark.parametrize("text", ["198.18.0.9", "fd6e:6f6e:6f00:1::9"])
def test_a_real_address_inside_a_pool_is_never_given(text: str) -> None:
    """A real 198.18/15 host cannot take the place of a synthetic address."""
    names = NameTable()
    (given,) = names.give("lab.example", [ip_address(text)]) or ()
    assert given != ip_address(text)
    assert names.name_of(given) == "lab.example"
    assert names.name_of(ip_address(text)) is None


def test_the_sandbox_interface_and_special_addresses_are_not_handed_out() -> None:
    """The network, the interface's address and the broadcast address stay out of a pool."""
    names = NameTable(IPv4Network("198.18.0.0/29"), IPv6Network("fd00::/125"))
    names.give("holder.example", [A])
    given = [names.give(f"n{number}.example", [A]) for number in range(6)]
    assert given == [*((ip_address(f"198.18.0.{last}"),) for last in range(2, 7)), None]


def test_an_exhausted_pool_answers_nothing_and_forgets_nothing() -> None:
    """No address is ever taken from one name for another; the other family is not affected."""
    names = NameTable(IPv4Network("198.18.0.0/30"), IPv6Network("fd00::/125"))
    names.give("one.example", [A, C])
    two = names.give("two.example", [A])
    assert names.give("three.example", [A]) is None
    assert names.give("two.example", [A]) == two
    assert names.give("three.example", [C]) is not None
    assert names.give("three.example", [B]) == (B,)


def test_the_table_is_bounded() -> None:
    """Wildcard rules and a hostile zone cannot grow it without end; what was given stays."""
    names = NameTable(limit=3)
    assert names.give("one.example", [A, B]) == (A, B)
    assert names.give("two.example", [C, ip_address("203.0.113.9")]) is None
    assert names.give("one.example", [A, B]) == (A, B)
    assert len(names._name_of) == 3


@pytest.mark.parametrize("text", ["203.0.113.7", "2001:db8::7"])
def test_reverse_names_lead_back(text: str) -> None:
    """RFC 1035 §3.5 and RFC 3596 §2.5, both ways."""
    address = ip_address(text)
    assert address_of_reverse_name(reverse_name(address)) == address


@pytest.mark.parametrize(
    "host",
    [
        "in-addr.arpa",
        "113.0.203.in-addr.arpa",
        "7.7.113.0.203.in-addr.arpa",
        "07.113.0.203.in-addr.arpa",
        "256.113.0.203.in-addr.arpa",
        "x.113.0.203.in-addr.arpa",
        "ip6.arpa",
        "8.b.d.0.1.0.0.2.ip6.arpa",
        ".".join(["g"] * 32) + ".ip6.arpa",
        ".".join(["1"] * 33) + ".ip6.arpa",
        "_." * 31 + "1.ip6.arpa",
        "example.com",
        "7.113.0.203.in-addr.arpa.example.com",
    ],
)
def test_other_names_are_no_address(host: str) -> None:
    """Only the one full spelling of an address stands for it."""
    assert address_of_reverse_name(host) is None


def test_one_name_cannot_use_up_the_addresses() -> None:
    """However its answers change."""
    table = NameTable()
    addresses = [IPv4Address(0xCB007100 + number) for number in range(2000)]
    given = [table.give("x.test", [address]) for address in addresses]
    assert given.count(None) == 2000 - 1024
    assert table.give("y.test", [addresses[-1]]) == (addresses[-1],)
