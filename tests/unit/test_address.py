"""`nono_ebpf.policy.address`: what no rule can open, in every spelling."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from nono_ebpf.authority import canonical_host
from nono_ebpf.policy.address import ALWAYS_DENIED_NAMES, always_denied, embedded_ipv4

NEVER_V4 = [
    *("169.254.169.254", "169.254.0.1", "169.254.170.2", "169.254.170.23", "169.254.255.255"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "0.1.2.3"),
    *("224.0.0.1", "239.255.255.255", "255.255.255.255"),
]
EMBEDDINGS = [
    *("::{}", "::ffff:{}", "::ffff:0:{}", "64:ff9b::{}", "2001:db8::5efe:{}", "2001:db8::200:5efe:{}"),
]


def _inside(text: str, form: str) -> IPv6Address:
    return IPv6Address(form.format(text))


@pytest.mark.parametrize("text", NEVER_V4)
def test_ipv4_denied_whatever_the_rules_say(text: str) -> None:
    """Metadata services, link-local, unspecified, multicast and broadcast IPv4 are denied."""
    assert always_denied(IPv4Address(text))


@pytest.mark.parametrize("form", EMBEDDINGS)
@pytest.mark.parametrize("text", [*NEVER_V4[:-1], "127.0.0.1", "127.255.0.1"])
def test_ipv4_hidden_in_ipv6_is_denied(text: str, form: str) -> None:
    """A denied or loopback IPv4 address is seen through every embedding in IPv6."""
    assert always_denied(_inside(text, form))


@pytest.mark.parametrize(
    "text",
    [
        *("::", "fe80::1", "febf::1", "fd00:ec2::254", "fd00:ec2::23", "fd00:ec2:ffff::1", "fd20:ce::254"),
        *("fd00:42::42", "fd00:c1::a9fe:a9fe", "fd00:100::100:200", "fd00:a9fe:a9fe::1", "ff02::1"),
        *(
            "64:ff9b:1::808:808",
            "64:ff9b:1:ffff::1",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "2002:6464:64c8::5",
        ),
        # Teredo: the server, then the client with every bit flipped (RFC 4380 §4).
        *("2001:0:a9fe:a9fe::ffff", "2001:0:808:808:0:0:80ff:fffe", "2001:0:808:808:0:0:5601:5601"),
    ],
)
def test_ipv6_denied_whatever_the_rules_say(text: str) -> None:
    """Metadata services, link-local, unspecified, multicast, local-use NAT64, tunnels to the denied."""
    assert always_denied(IPv6Address(text))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "127.0.0.1",
            "93.184.216.34",
            "169.253.255.255",
            "170.0.0.0",
        ),
        *("100.100.100.199", "168.63.129.17", "192.0.0.193", "223.255.255.255", "1.0.0.0", "198.18.0.1"),
        *("::1", "2606:2800:220:1::1", "fd00::1", "fd00:ec3::254", "64:ff9b::808:808", "2002:808:808::1"),
        *("::ffff:104.18.7.96", "2001:0:808:808:0:0:f7f7:f7f7", "fec0::1", "2001:db8::5eff:a9fe:a9fe"),
    ],
)
def test_other_addresses_are_for_the_rules(text: str) -> None:
    """Private, loopback and public addresses are not denied here, nor the neighbours of those that are."""
    assert always_denied(ip_address(text)) is None


def test_loopback_is_not_an_embedding() -> None:
    """`::1` is loopback and not the compatible form of 0.0.0.1."""
    assert embedded_ipv4(IPv6Address("::1")) == ()


def test_the_reason_names_the_hidden_address() -> None:
    """Who reads the log sees which IPv4 address was hidden."""
    assert "169.254.169.254" in (always_denied(IPv6Address("64:ff9b::a9fe:a9fe")) or "")


def test_denied_names_are_canonical() -> None:
    """A name in the list that is not in canonical form would never match."""
    assert {canonical_host(name) for name in ALWAYS_DENIED_NAMES} == ALWAYS_DENIED_NAMES
    assert {"metadata.google.internal", "metadata.azure.internal"} <= ALWAYS_DENIED_NAMES
