"""TCP opened in every way there is: what is permitted arrives through the proxy, and nothing else does."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from attacks import requests, streams
from attacks.base import AUTHORIZED, SECRET
from kit import zone
from kit.expect import missing
from kit.sandboxes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

V4, V6 = zone.v4("echo.example.com"), zone.v6("echo.example.com")
DENIED_V4, DENIED_V6 = zone.v4("db.example.com"), zone.v6("db.example.com")
PORT, DENIED_PORT = zone.SUM_PORT, zone.ECHO_PORT
SUMMED = f"{len(SECRET)} {hashlib.sha256(SECRET).hexdigest()}\n"
REFUSALS = {"ECONNREFUSED", "ECONNRESET", "EPERM", "EPIPE", "ENOTCONN", "EACCES", "ENETUNREACH", "EHOSTUNREACH"}

WAYS: dict[str, list[Callable[..., Any]]] = {
    "multipath-tcp": [streams.multipath, streams.multipath_fastopen],
    "tcp-fast-open": [streams.fastopen_sendto, streams.fastopen_sendmsg, streams.fastopen_connect],
    "disconnect-and-reconnect": [streams.after_disconnect],
    "bound-to-device": [streams.bound],
    "zero-copy": [streams.zero_copied],
    "thread-races": [streams.nonblocking],
    "peer-address": [streams.plain],
}
ABILITIES = {"multipath": "mptcp", "multipath_fastopen": "mptcp-fastopen"}
EVERY_WAY = [
    pytest.param(way, address, marks=pytest.mark.bypass(slug), id=f"{way.__name__} {address}")
    for slug, ways in WAYS.items()
    for way in ways
    for address in (V4, V6)
]
MAPPED = pytest.param(streams.mapped, V4, marks=pytest.mark.bypass("ipv4-mapped-ipv6"), id="mapped")


@pytest.mark.parametrize(("way", "address"), [*EVERY_WAY, MAPPED])
def test_however_it_is_opened_it_is_judged(
    inside: Agent, outside: Agent, witness: Witness, way: Callable[..., Any], address: str
) -> None:
    """To a permitted destination it arrives, from the proxy; to another port of the same address it does not."""
    control = outside.call(way, address, PORT)
    if control in {"EOPNOTSUPP", "EPROTONOSUPPORT", "ENOPROTOOPT"}:
        missing(ABILITIES[way.__name__], f"the kernel has no such connection ({way.__name__}: {control})")
    assert control == SUMMED
    witness.forget()
    assert inside.call(way, address, PORT) == SUMMED
    assert [(seen.address, seen.what) for seen in witness.arrived("sum")] == [(address, str(len(SECRET)))]
    assert inside.call(way, address, DENIED_PORT) in {*REFUSALS, ""}
    assert witness.arrived("echo") == []


@pytest.mark.bypass("disconnect-and-reconnect")
@pytest.mark.parametrize(("permitted", "denied"), [(V4, DENIED_V4), (V6, DENIED_V6)])
def test_a_reconnected_socket_is_judged_anew(inside: Agent, permitted: str, denied: str) -> None:
    """What was once permitted to a socket says nothing about where it goes next."""
    assert inside.call(streams.after_permitted, permitted, PORT, denied, DENIED_PORT) in {*REFUSALS, ""}


@pytest.mark.bypass("disconnect-and-reconnect")
def test_a_destination_of_no_family_is_none(inside: Agent, outside: Agent, witness: Witness) -> None:
    """connect(2) takes AF_UNSPEC for a disconnect, and AF_INET6 sockets take no AF_INET destination as such."""
    assert outside.call(streams.family_unspec, DENIED_V4, DENIED_PORT) == "done, then EPIPE"
    witness.forget()
    assert inside.call(streams.family_unspec, DENIED_V4, DENIED_PORT) == "done, then EPIPE"
    assert inside.call(streams.wrong_family, DENIED_V4, DENIED_PORT).split(", then ")[1] in {"EPIPE", "ENOTCONN"}


@pytest.mark.bypass("unspecified-address")
def test_the_unspecified_address_is_the_sandboxs_own_loopback(inside: Agent) -> None:
    """Nobody listens there; the host's services do not answer."""
    met = inside.call(streams.unspecified, zone.HTTP_PORT)
    assert met == {"0.0.0.0": "ECONNREFUSED", "::": "ECONNREFUSED", "::ffff:0.0.0.0": "ECONNREFUSED"}


@pytest.mark.bypass("unspecified-address")
@pytest.mark.parametrize("address", ["0.0.0.0", "[::]", "0.1.2.3", "[::ffff:0.0.0.0]"])
def test_the_proxy_refuses_the_unspecified_address(inside: Agent, address: str) -> None:
    """Asked of the proxy it would be the machine's loopback."""
    answers = inside.call(streams.to_listeners, f"CONNECT {address}:80 HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}\r\n")
    assert any(" 403 " in answer for answer in answers.values())
    assert not any(" 200 " in answer for answer in answers.values())


@pytest.mark.bypass("bound-to-device")
@pytest.mark.parametrize("address", [DENIED_V4, DENIED_V6])
def test_a_device_is_no_way_out(inside: Agent, address: str) -> None:
    """Loopback is the only one there is."""
    assert inside.call(streams.to_a_device, address, DENIED_PORT, "lo") in {*REFUSALS, ""}
    assert inside.call(streams.to_a_device, address, DENIED_PORT, "mach0") == "ENODEV"


@pytest.mark.bypass("routing-options")
def test_options_that_steer_routing_need_a_capability(inside: Agent) -> None:
    """None of them can be set."""
    assert set(inside.call(streams.privileged_options, "127.0.0.1").values()) == {"EPERM"}
    assert inside.call(streams.repaired, DENIED_V4, DENIED_PORT) == "EPERM"


@pytest.mark.bypass("routing-options")
def test_a_source_route_leads_nowhere(inside: Agent) -> None:
    """By way of a permitted host, or by way of the denied one itself."""
    for by in (V4, DENIED_V4):
        assert inside.call(streams.source_routed, DENIED_V4, DENIED_PORT, by) in {*REFUSALS, ""}
        assert inside.call(streams.source_routed, V4, PORT, by) in {*REFUSALS, SUMMED, ""}
    assert inside.call(streams.routed_v6, DENIED_V6, DENIED_PORT, V6) in {*REFUSALS, "EINVAL", ""}


@pytest.mark.bypass("routing-options")
def test_an_address_of_somebody_else_is_no_way_out(inside: Agent) -> None:
    """IP_FREEBIND needs no right; what it sends ends in the namespace."""
    for source in (zone.MACHINE_V4, "198.51.100.1", "127.0.0.9"):
        assert inside.call(streams.freely_bound, DENIED_V4, DENIED_PORT, source) in {*REFUSALS, "", "ETIMEDOUT"}


@pytest.mark.bypass("simultaneous-open")
def test_a_socket_that_connects_to_itself_stays_inside(inside: Agent, outside: Agent, witness: Witness) -> None:
    """And one of the same port that connects outside is judged."""
    assert outside.call(streams.self_connected, DENIED_V4, DENIED_PORT)["itself"] == "done s3cret"
    witness.forget()
    met = inside.call(streams.self_connected, DENIED_V4, DENIED_PORT)
    assert met["itself"] == "done s3cret"
    assert met["outside"] in {*REFUSALS, "done"}


@pytest.mark.bypass("simultaneous-open")
def test_listeners_and_accepted_sockets_connect_like_any_other(inside: Agent) -> None:
    """Both were made by other ways than socket(2) and connect(2), and are judged all the same."""
    first, sent, second = inside.call(streams.through_a_listener, DENIED_V4, DENIED_PORT).split()
    assert first in {*REFUSALS, "done", "EISCONN", "EINVAL"}
    assert second in {*REFUSALS, "EISCONN", "EINVAL"}
    assert sent in {"-", "done", *REFUSALS}


@pytest.mark.bypass("upper-layer-protocols")
@pytest.mark.parametrize("name", ["smc", "tls", "espintcp", "mptcp"])
def test_a_protocol_over_tcp_changes_no_verdict(inside: Agent, name: str) -> None:
    """A socket that was turned into another kind is judged, or cannot be turned."""
    turned, connected = inside.call(streams.upper_layer, DENIED_V4, DENIED_PORT, name).split(", then ")
    assert turned in {"ENOENT", "EPERM", "ENOTCONN", "EINVAL", "EOPNOTSUPP", "done"}
    assert connected in {*REFUSALS, "done"}


@pytest.mark.bypass("changing-address")
def test_what_is_judged_is_what_is_dialled(inside: Agent, outside: Agent, witness: Witness) -> None:
    """A destination that another thread swaps during connect(2) is either the one or the other, never both."""
    rounds = 60
    peers: set[str] = set()
    while peers != {V4, DENIED_V4}:
        met = outside.call(streams.while_it_changes, V4, DENIED_V4, PORT, rounds)
        peers |= {peer.split()[0] for peer in met}
        assert eventually(lambda: len(witness.arrived("sum")) == rounds)
        witness.forget()
    witness.forget()
    inside.call(streams.while_it_changes, V4, DENIED_V4, PORT, rounds)


@pytest.mark.bypass("thread-races")
def test_a_storm_of_threads_is_judged_one_by_one(inside: Agent) -> None:
    """Sixteen threads on one socket and on their own: nothing of it gets out."""
    met = inside.call(streams.from_a_thread_storm, DENIED_V4, DENIED_PORT, 16)
    # Whoever connects behind a reset that another's send was told of learns of it by ECONNABORTED.
    assert set(met) <= {*REFUSALS, "EINPROGRESS", "EALREADY", "EISCONN", "done", "EAGAIN", "ECONNABORTED"}


@pytest.mark.bypass("peer-address")
@pytest.mark.parametrize("address", [V4, V6])
def test_the_peer_is_the_one_that_was_asked_for(inside: Agent, address: str) -> None:
    """A client that compares getpeername with its wish is content, so that it needs no other way."""
    met = inside.call(streams.peer_is, address, PORT)
    assert (met["peer"], met["reply"]) == ([address, PORT], SUMMED)


@pytest.mark.bypass("own-listeners")
def test_our_own_listeners_are_an_explicit_proxy_and_a_resolver(inside: Agent) -> None:
    """Dialled by their own address they judge as ever: a request without a host to name gets nothing."""
    answers = inside.call(streams.to_listeners, f"GET / HTTP/1.1\r\nHost: one.example.com\r\n{AUTHORIZED}\r\n")
    assert len(answers) == 4, answers  # proxy and resolver, on both families
    assert not any(" 200 " in answer for answer in answers.values()), answers


@pytest.mark.bypass("own-listeners")
def test_our_listeners_share_their_ports_with_nobody(inside: Agent) -> None:
    """A program inside that took over the proxy's port or the resolver's would be believed by the others."""
    met = inside.call(streams.steal)
    assert len(met) == 3, met
    assert set(met.values()) == {"EADDRINUSE"}, met


@pytest.mark.bypass("own-listeners", "http-connect-tricks")
def test_the_proxy_does_not_dial_itself(inside: Agent) -> None:
    """CONNECT to its own port, to the namespace's own address, to loopback: refused, not looped."""
    for target in ("127.0.0.1:1", "[::1]:1", "198.18.0.1:1", "localhost:1", "[fd6e:6f6e:6f00::1]:1"):
        answers = inside.call(streams.to_listeners, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{AUTHORIZED}\r\n")
        assert sum(" 403 " in answer for answer in answers.values()) == 2, (target, answers)


@pytest.mark.bypass("other-ports")
@pytest.mark.parametrize("port", [21, 22, 25, 8080, 8443, 2222])
def test_a_permitted_host_is_permitted_on_its_ports(inside: Agent, port: int) -> None:
    """80 and 443 of a rule without a port, and nothing else."""
    request = "GET / HTTP/1.0\r\nHost: one.example.com\r\n\r\n"
    (answer,) = inside.call(requests.to_server, "one.example.com", port, [[request]])
    assert "200 OK" not in answer


@pytest.mark.bypass("uid-0")
def test_attacks_run_as_the_account(inside: Agent) -> None:
    """The control of the others: the attacks run as the account, not as root."""
    assert inside.call(streams.identity)["uid"] == 65534
