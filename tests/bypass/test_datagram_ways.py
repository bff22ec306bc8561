"""Datagrams: to a resolver they are questions, on loopback the sandbox's own affair, elsewhere refused at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from attacks import datagrams
from kit import zone
from kit.sandboxes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

V4, V6 = zone.v4("echo.example.com"), zone.v6("echo.example.com")
PORT = zone.SINK_UDP_PORT
EVERYWHERE = [V4, V6, zone.METADATA_V4, zone.MACHINE_V4, zone.v4("one.example.com"), zone.GATEWAY_V6]


def _attempts(outcome: Any) -> set[str]:
    return set(outcome.values()) if isinstance(outcome, dict) else {outcome}


@pytest.mark.bypass("datagrams")
@pytest.mark.parametrize("address", EVERYWHERE)
def test_a_datagram_is_refused(inside: Agent, address: str) -> None:
    """By EPERM, whatever the call, also to a host that may be connected to."""
    assert inside.call(datagrams.ways, address, PORT) == {"sendto": "EPERM", "sendmsg": "EPERM", "connect": "EPERM"}


@pytest.mark.bypass("quic")
@pytest.mark.parametrize("port", [443, 80, 853, 784, 8853, 123, 5353, 1900, 4500, 51820])
def test_protocols_on_datagrams_are_refused(inside: Agent, port: int) -> None:
    """QUIC, DoQ, NTP, mDNS, SSDP, IPsec, WireGuard: at once, so that clients take another way."""
    for address in (zone.v4("one.example.com"), zone.v6("one.example.com")):
        assert set(inside.call(datagrams.ways, address, port).values()) == {"EPERM"}


@pytest.mark.parametrize(
    ("way", "arguments", "refused"),
    [
        pytest.param(datagrams.sendmmsg, (V4, PORT), {"1 sent", "EPERM"}, marks=pytest.mark.bypass("datagrams")),
        pytest.param(datagrams.family_unspec, (V4, PORT), {"EPERM"}, marks=pytest.mark.bypass("datagrams")),
        pytest.param(datagrams.mapped, (V4, PORT), {"EPERM"}, marks=pytest.mark.bypass("mapped-datagrams")),
        pytest.param(
            datagrams.with_control,
            (V4, PORT, "127.0.0.1"),
            {"EPERM", "EINVAL", "ENETUNREACH"},
            marks=pytest.mark.bypass("datagram-options"),
        ),
        pytest.param(
            datagrams.elsewhere_when_connected,
            (V4, PORT),
            {"EPERM"},
            marks=pytest.mark.bypass("connected-datagrams"),
        ),
        pytest.param(
            datagrams.to_groups,
            (PORT,),
            {"EPERM", "ENETUNREACH"},
            marks=pytest.mark.bypass("multicast-and-broadcast"),
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_no_other_way_sends_one(
    inside: Agent,
    outside: Agent,
    witness: Witness,
    way: Callable[..., Any],
    arguments: tuple[Any, ...],
    refused: set[str],
) -> None:
    """Outside it arrives; inside it is refused, and arrives nowhere."""
    outside.answer(way, *arguments)
    assert eventually(lambda: bool(witness.arrived("udp")))
    witness.forget()
    assert _attempts(inside.call(way, *arguments)) <= refused
    assert witness.arrived("udp") == []


@pytest.mark.bypass("datagram-options")
def test_a_corked_datagram_goes_where_its_first_part_went(inside: Agent) -> None:
    """The kernel asks nobody about the second destination, and does not use it."""
    assert inside.call(datagrams.corked, V4, PORT) in {"done", "EPERM"}
