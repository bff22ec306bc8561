"""TLS: the server name is judged, however it is wrapped; the address that a client dials with it is not dialled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attacks import requests
from attacks.base import AUTHORIZED
from kit import hellos, zone

if TYPE_CHECKING:
    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

GET = "GET / HTTP/1.1\r\nHost: one.example.com\r\nConnection: close\r\n\r\n"
ELSEWHERE = zone.v4("db.example.com")
ALERT, SERVER_HELLO = "\x15", "\x16"


def _answered(answer: str) -> bool:
    return answer.startswith(SERVER_HELLO)


def _hello(name: str, *more: bytes) -> bytes:
    return hellos.message([hellos.server_name(name.encode()), *_MODERN, *more])


# Enough for a server to answer with something else than an alert: groups, signatures, versions.
_MODERN = (
    hellos.extension(hellos.SUPPORTED_GROUPS, bytes.fromhex("0004001d0017")),
    hellos.extension(13, bytes.fromhex("00060403080404 01".replace(" ", ""))),
    hellos.extension(43, bytes.fromhex("020304")),
    hellos.extension(51, bytes.fromhex("0000")),
)
GREASE = (hellos.extension(0x0A0A, b""), hellos.extension(0x1A1A, b"\0" * 17), hellos.extension(21, bytes(300)))


@pytest.mark.bypass("forged-server-name")
@pytest.mark.parametrize("address", [ELSEWHERE, zone.v6("db.example.com"), "198.51.100.9"])
def test_a_permitted_name_takes_nobody_to_another_address(inside: Agent, witness: Witness, address: str) -> None:
    """With a permitted server name and the attacker's address, the name's own server is reached, or nobody."""
    answer = inside.call(requests.over_tls, address, 443, "one.example.com", GET)
    assert answer.startswith("HTTP/1.1 200")
    arrived = witness.arrived("https")
    assert {seen.address for seen in arrived} <= {zone.v4("one.example.com"), zone.v6("one.example.com")}
    assert arrived


@pytest.mark.bypass("forged-server-name")
def test_a_name_and_an_address_must_both_be_permitted(inside: Agent) -> None:
    """A denied server name behind a permitted name's address, and by CONNECT to a permitted host."""
    outer = f"CONNECT one.example.com:443 HTTP/1.1\r\nHost: one.example.com:443\r\n{AUTHORIZED}\r\n"
    hello = hellos.records(_hello("other.example.net")).decode("latin-1")
    assert not _answered(inside.call(requests.hex_pieces, "one.example.com", 443, [hello.encode("latin-1").hex()]))
    (answer,) = inside.call(requests.to_proxy, [[outer, hello]])
    assert not _answered(answer.partition("\r\n\r\n")[2])


@pytest.mark.bypass("no-server-name")
def test_tls_without_a_name_is_judged_by_its_address(inside: Agent) -> None:
    """No server name, an address for a server name, an empty one: denied where the address is."""
    for extensions in (
        [],
        [hellos.server_name(ELSEWHERE.encode())],
        [hellos.server_name(b"")],
        [hellos.server_name(b"one.example.com", kind=1)],
    ):
        hello = hellos.records(hellos.message([*extensions, *_MODERN]))
        assert not _answered(inside.call(requests.hex_pieces, ELSEWHERE, 443, [hello.hex()]))
    request = f"CONNECT {ELSEWHERE}:443 HTTP/1.1\r\nHost: {ELSEWHERE}:443\r\n{AUTHORIZED}\r\n"
    (answer,) = inside.call(requests.to_proxy, [[request]])
    assert answer.startswith("HTTP/1.1 403")


@pytest.mark.bypass("encrypted-client-hello")
def test_an_outer_name_is_judged_like_any_other(inside: Agent) -> None:
    """An encrypted hello whose outer name is denied goes nowhere."""
    hidden = hellos.extension(hellos.ENCRYPTED_CLIENT_HELLO, b"\0" * 120)
    hello = hellos.records(_hello("other.example.net", hidden))
    assert not _answered(inside.call(requests.hex_pieces, ELSEWHERE, 443, [hello.hex()]))
    assert not _answered(inside.call(requests.hex_pieces, "one.example.com", 443, [hello.hex()]))


def _splits(name: str) -> dict[str, list[bytes]]:
    whole = _hello(name, *GREASE)
    records = hellos.records(whole)
    return {
        "byte by byte records": [hellos.records(whole, [1] * len(whole))],
        "records that cut the name": [hellos.records(whole, [43, 5, 20, 3])],
        "segments": [records[:3], records[3:6], records[6:50], records[50:]],
        "records and segments": [hellos.records(whole, [90])[:20], hellos.records(whole, [90])[20:]],
        "long": [
            hellos.records(_hello(name, *(hellos.extension(0x2A2A + i, bytes(8000)) for i in range(3))), [16000, 8000])
        ],
        "name last": [hellos.records(hellos.message([*GREASE, *_MODERN, hellos.server_name(name.encode())]))],
    }


@pytest.mark.bypass("split-client-hello")
@pytest.mark.parametrize("way", _splits("x.example"))
def test_a_hello_in_pieces_gets_the_same_verdict(inside: Agent, way: str) -> None:
    """Over records, over segments, with GREASE, larger than a record: a denied name stays denied."""
    pieces = [piece.hex() for piece in _splits("other.example.net")[way]]
    assert not _answered(inside.call(requests.hex_pieces, ELSEWHERE, 443, pieces))
    assert not _answered(inside.call(requests.hex_pieces, "one.example.com", 443, pieces))


@pytest.mark.bypass("split-client-hello")
@pytest.mark.parametrize("way", ["segments", "records and segments", "name last"])
def test_a_permitted_hello_in_pieces_is_answered(inside: Agent, way: str) -> None:
    """The control: these pieces are a hello that servers take."""
    pieces = [piece.hex() for piece in _splits("one.example.com")[way]]
    assert _answered(inside.call(requests.hex_pieces, ELSEWHERE, 443, pieces))


@pytest.mark.bypass("encrypted-dns")
@pytest.mark.parametrize("port", [853, 8853, 784])
def test_dns_over_tls_is_no_way(inside: Agent, port: int) -> None:
    """To public resolvers, to the host's, to a permitted host: that port is in no rule."""
    for address in ("9.9.9.9", "1.1.1.1", zone.DNS_V4, zone.v4("one.example.com")):
        met = inside.call(requests.over_tls, address, port, "dns.quad9.net", "x")
        assert met.startswith("TLS: ") or met in {"ECONNRESET", "ECONNREFUSED"}


@pytest.mark.bypass("encrypted-dns")
@pytest.mark.parametrize(
    "name", ["dns.google", "cloudflare-dns.com", "dns.quad9.net", "one.one.one.one", "mozilla.cloudflare-dns.com"]
)
def test_dns_over_https_is_a_host_like_any_other(inside: Agent, name: str) -> None:
    """By name, and by the resolver's well-known address."""
    request = f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n{AUTHORIZED}\r\n"
    (answer,) = inside.call(requests.to_proxy, [[request]])
    assert answer.startswith("HTTP/1.1 403")
    for address in ("8.8.8.8", "1.1.1.1", "9.9.9.9"):
        secure = inside.call(requests.over_tls, address, 443, name, "GET /dns-query HTTP/1.0\r\n\r\n")
        assert not secure.startswith("HTTP/"), secure
