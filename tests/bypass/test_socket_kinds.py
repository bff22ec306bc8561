"""Of all kinds of sockets a sandbox gets TCP, UDP, unix and the routing netlink: what can be judged."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest
from attacks import kinds
from kit import zone
from kit.expect import missing

if TYPE_CHECKING:
    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

V4 = zone.v4("db.example.com")
# [family, type, protocol]
REFUSED = {
    "raw-sockets": {
        "icmp": [2, 3, 1],
        "raw": [2, 3, 255],
        "udp": [2, 3, 17],
        "tcp": [2, 3, 6],
        "v6": [10, 3, 58],
        "v6 raw": [10, 3, 255],
    },
    "ping-sockets": {"v4": [2, 2, 1], "v6": [10, 2, 58]},
    "packet-sockets": {"raw": [17, 3, 0x300], "datagram": [17, 2, 0x300], "obsolete": [2, 10, 0x300]},
    "sctp-dccp-udplite": {
        "sctp": [2, 1, 132],
        "sctp seqpacket": [2, 5, 132],
        "sctp v6": [10, 5, 132],
        "dccp": [2, 6, 33],
        "dccp v6": [10, 6, 33],
        "udplite": [2, 2, 136],
        "udplite v6": [10, 2, 136],
        "l2tp": [2, 2, 115],
    },
    "upper-layer-protocols": {"smc": [2, 1, 256], "smc v6": [10, 1, 256], "quic": [2, 2, 261], "homa": [2, 2, 146]},
    "vsock": {"stream": [40, 1, 0], "datagram": [40, 2, 0], "seqpacket": [40, 5, 0]},
    "unusual-families": {
        "tipc": [30, 5, 0],
        "rds": [21, 5, 0],
        "smc": [43, 1, 0],
        "kcm": [41, 2, 0],
        "xdp": [44, 3, 0],
        "alg": [38, 5, 0],
        "bluetooth": [31, 3, 1],
        "can": [29, 3, 1],
        "nfc": [39, 5, 0],
        "qrtr": [42, 2, 0],
        "phonet": [35, 2, 0],
        "pppox": [24, 1, 0],
        "key": [15, 3, 2],
        "mctp": [45, 2, 0],
        "ax25": [3, 5, 0],
        "x25": [9, 5, 0],
        "atm": [8, 2, 0],
        "llc": [26, 1, 0],
        "ieee802154": [36, 3, 0],
        "caif": [37, 5, 0],
    },
    "netlink": {
        "generic": [16, 3, 16],
        "audit": [16, 3, 9],
        "sock_diag": [16, 3, 4],
        "netfilter": [16, 3, 12],
        "uevent": [16, 3, 15],
        "xfrm": [16, 3, 6],
        "crypto": [16, 3, 21],
        "connector": [16, 3, 11],
        "iscsi": [16, 3, 8],
        "rdma": [16, 3, 20],
        "selinux": [16, 3, 7],
    },
}
KEPT = {"tcp": [2, 1, 6], "tcp6": [10, 1, 0], "udp": [2, 2, 17], "unix": [1, 1, 0], "route": [16, 3, 0]}
UNIX, INET, NETLINK, INET6 = 1, 2, 16, 10
FAMILIES = 64


@pytest.mark.parametrize("slug", [pytest.param(slug, marks=pytest.mark.bypass(slug)) for slug in REFUSED])
def test_a_socket_of_this_kind_cannot_be_had(inside: Agent, slug: str) -> None:
    """Whatever flags come with it, while the ordinary ones can."""
    asked = REFUSED[slug] | KEPT
    for way in (kinds.opened, kinds.with_flags):
        met = inside.call(way, asked)
        assert {name for name, outcome in met.items() if outcome == "done"} == set(KEPT), met


@pytest.mark.bypass("unusual-families")
def test_no_other_family_can_be_had(inside: Agent) -> None:
    """Of all numbers that a family may have, four open."""
    assert inside.call(kinds.every_family, FAMILIES) == [UNIX, INET, INET6, NETLINK]


@pytest.mark.bypass("wide-arguments")
def test_an_argument_with_a_set_upper_half_is_refused(inside: Agent) -> None:
    """The kernel takes 32 bits of what a filter compares in 64."""
    asked = {name: numbers for kind in REFUSED.values() for name, numbers in kind.items()}
    met = inside.call(kinds.wide_families, asked)
    assert [name for name, outcome in met.items() if outcome == "done"] == []


@pytest.mark.bypass("socketpair-families")
def test_a_pair_is_of_unix_sockets(inside: Agent) -> None:
    """TIPC can make pairs too, and a pair's ends can send elsewhere."""
    met = inside.call(kinds.pairs, list(range(FAMILIES)))
    assert {name.partition("/")[0] for name, outcome in met.items() if outcome == "done"} == {str(UNIX)}


@pytest.mark.bypass("socketpair-families")
def test_a_pair_of_another_family_is_refused_by_its_family(inside: Agent) -> None:
    """As socket(2) is: before the kernel makes, or loads, anything of that family."""
    met = inside.call(kinds.pairs, [family for family in range(FAMILIES) if family != UNIX])
    assert set(met.values()) == {"EAFNOSUPPORT"}, met


@pytest.mark.bypass("ping-sockets")
def test_an_echo_request_carries_nothing_out(inside: Agent) -> None:
    """Neither by an unprivileged socket nor by a raw one."""
    assert inside.call(kinds.ping, V4) in {"EPERM", "EACCES"}


@pytest.mark.bypass("raw-sockets", "packet-sockets")
def test_a_packet_of_our_own_making_cannot_be_sent(inside: Agent) -> None:
    """Neither a packet nor a frame."""
    assert inside.call(kinds.raw, V4) == "EPERM"
    assert inside.call(kinds.packet, "lo") in {"EAFNOSUPPORT", "EPERM"}


@pytest.mark.bypass("netlink")
def test_routing_can_be_read_and_not_changed(inside: Agent) -> None:
    """No link, no address, no route can be added, and the loopback link stays where it is."""
    met = inside.call(kinds.route_changes)
    assert met.pop("list links") == "done"
    assert set(met.values()) <= {"EPERM", "EOPNOTSUPP"}, met


@pytest.mark.bypass("netlink")
def test_netlink_is_for_routing_only(inside: Agent) -> None:
    """Of its families one opens."""
    met = inside.call(kinds.other_netlink)
    assert [protocol for protocol, outcome in met.items() if outcome == "done"] == ["0"]


@pytest.mark.bypass("other-abis")
def test_a_system_call_of_another_abi_ends_the_process(inside: Agent, outside: Agent, witness: Witness) -> None:
    """A filter by number would take it for another call."""
    if platform.machine() != "x86_64":
        missing("other-abis", "this machine's kernel has one ABI")
    witness.forget()
    killed = {"ended -31", "ENOSYS"}
    assert inside.call(kinds.i386) in {*killed, "ended -11"}
    assert inside.call(kinds.x32) in killed


@pytest.mark.bypass("devices")
def test_no_device_carries_packets_or_keystrokes(inside: Agent) -> None:
    """What opens for writing is null, zero, full, random, a terminal, and tun, which takes a capability."""
    harmless = {"1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "10:200", "10:229"}
    opened = inside.call(kinds.devices)
    assert {name: numbers for name, numbers in opened.items() if numbers not in harmless} == {}
    assert inside.call(kinds.tun, "nono0") in {"EPERM", "ENOENT", "EACCES"}


@pytest.mark.bypass("unusual-families")
def test_a_refused_family_loads_no_module(inside: Agent) -> None:
    """A family that is asked for would bring its code into the kernel."""
    assert inside.call(kinds.autoloaded) == []
