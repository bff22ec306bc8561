"""Addresses in every spelling: judged for what they mean, by the proxy, on redirected connections and in answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attacks import streams
from attacks.base import AUTHORIZED
from kit import zone

if TYPE_CHECKING:
    from kit.inside import Agent
    from kit.witness import Witness
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "fd00:42::42",
    "fd00:c1::a9fe:a9fe",
    "fd00:100::100:200",
    "fd00:a9fe:a9fe::1",
]
METADATA_NAMES = [
    "metadata.google.internal",
    "metadata",
    "metadata.goog",
    "instance-data.ec2.internal",
    "METADATA.GOOG.",
]
# 169.254.169.254 and 127.0.0.1 inside IPv6.
EMBEDDED = [
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "::a9fe:a9fe",
    "::ffff:0:a9fe:a9fe",
    "2001:0:a9fe:a9fe::1",
    "2001:db8::5efe:a9fe:a9fe",
    "2001:0:1:2:3:4:5601:5601",
    "64:ff9b::7f00:1",
    "2002:7f00:1::1",
    "::ffff:0:7f00:1",
    "::7f00:1",
]
OWN = [zone.MACHINE_V4, zone.MACHINE_V6, f"::ffff:{zone.MACHINE_V4}"]
REFUSALS = {"ECONNREFUSED", "ECONNRESET", "EPERM", "EPIPE", "ENOTCONN", ""}
GET = "GET / HTTP/1.1\r\nHost: one.example.com\r\nConnection: close\r\n\r\n"
ANYTHING = ["--allow-domain", "*"]


def _connect_to(host: str, port: int = 80) -> str:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{AUTHORIZED}\r\n{GET}"


def _absolute(host: str) -> str:
    target = f"[{host}]" if ":" in host else host
    return f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n{AUTHORIZED}Connection: close\r\n\r\n"


def assert_proxy_refuses(inside: Agent, request: str, *statuses: int) -> None:
    """Both listeners answer with one of these statuses, or hang up, and nothing says 200."""
    answers = inside.call(streams.to_listeners, request)
    codes = {answer.split(" ")[1] for answer in answers.values() if answer.startswith("HTTP/1.1 ")}
    assert codes
    assert codes <= {str(status) for status in statuses}, answers


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(METADATA, marks=pytest.mark.bypass("metadata-services"), id="metadata"),
        pytest.param(EMBEDDED, marks=pytest.mark.bypass("embedded-ipv4"), id="embedded"),
        pytest.param(OWN, marks=pytest.mark.bypass("own-addresses"), id="own"),
    ],
)
def test_a_connection_to_a_denied_address_is_refused(inside: Agent, addresses: list[str]) -> None:
    """By 403, and a Host field with a permitted name does not help where no name could."""
    answers = inside.call(streams.each_address, addresses, zone.HTTP_PORT, "GET / HTTP/1.0\r\n\r\n")
    assert {host: answer for host, answer in answers.items() if " 200 " in answer} == {}
    assert set(answers) == set(addresses)


@pytest.mark.bypass("metadata-services")
def test_no_name_takes_one_to_the_metadata_service(inside: Agent, witness: Witness) -> None:
    """The address is refused before the Host field or the server name is looked at."""
    answers = inside.call(streams.each_address, METADATA, zone.HTTP_PORT, GET)
    assert {host: answer for host, answer in answers.items() if " 200 " in answer} == {}
    assert witness.arrived("http") == []


@pytest.mark.bypass("metadata-services", "embedded-ipv4", "own-addresses", "host-loopback")
@pytest.mark.parametrize("host", [*METADATA, *METADATA_NAMES, *EMBEDDED, *OWN, "127.0.0.1", "::1", "localhost"])
def test_the_proxy_is_asked_in_vain(inside: Agent, host: str) -> None:
    """By CONNECT and by a request in absolute form."""
    for request in (_connect_to(host), _absolute(host)):
        assert_proxy_refuses(inside, request, 403, 400)


@pytest.mark.bypass("scoped-addresses")
@pytest.mark.parametrize(
    "host", ["fe80::1%lo", "fe80::1%25lo", "fe80::1%25mach0", "fe80::1%1", "::1%lo", "2001:db8::10%lo"]
)
def test_a_zone_id_is_no_part_of_a_host(inside: Agent, host: str) -> None:
    """It would mean something on one machine only."""
    for request in (_connect_to(host), _absolute(host)):
        assert_proxy_refuses(inside, request, 400)


@pytest.mark.bypass("scoped-addresses")
def test_a_link_local_address_is_refused(inside: Agent) -> None:
    """With whatever scope."""
    answers = inside.call(streams.each_address, ["fe80::1%lo", "fe80::1%1", "fe80::1", "ff02::1%lo"], 80, GET)
    assert {host: answer for host, answer in answers.items() if " 200 " in answer} == {}


NUMBERS = [
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "0x7f.1",
    "017700000001",
    "3405803786",
    "203.0.28938",
    "0xcb.0.0x71.0x0a",
    "0313.0.0161.012",
    "2852039166",
    "169.254.43518",
    "0xa9fea9fe",
    "1.2.3.4.5",
    "256.1.1.1",
    "1.2.3.04",
]


@pytest.mark.bypass("number-spellings")
@pytest.mark.parametrize("host", NUMBERS)
def test_a_number_is_no_host(inside: Agent, host: str) -> None:
    """inet_aton(3) takes these for addresses; a proxy that took them for names would resolve them."""
    for request in (_connect_to(host), _absolute(host)):
        assert_proxy_refuses(inside, request, 400)


@pytest.mark.bypass("number-spellings")
def test_a_number_that_the_library_resolves_is_judged_as_the_address(inside: Agent) -> None:
    """getaddrinfo(3) makes an address of it before we see it."""
    met = inside.call(streams.spelled, NUMBERS, zone.ECHO_PORT)
    assert {
        text: outcome for text, outcome in met.items() if outcome not in REFUSALS and "no address" not in outcome
    } == {}


@pytest.mark.bypass("rebinding")
@pytest.mark.parametrize("name", ["rebind.example.com", "inward.example.com", "own.example.com"])
def test_a_permitted_name_that_points_inward_is_refused(inside: Agent, name: str) -> None:
    """The metadata service, loopback, this machine: by CONNECT, by absolute form, and it has no address inside."""
    for request in (_connect_to(name), _absolute(name)):
        assert_proxy_refuses(inside, request, 403)
    assert inside.call(streams.spelled, [name], 80)[name].startswith("no address")


@pytest.mark.bypass("allow-everything", "metadata-services", "own-addresses", "embedded-ipv4")
def test_everything_is_not_the_machine_itself(world: World, witness: Witness) -> None:
    """With "*" allowed, metadata, this machine and its loopback stay closed, and the caller is warned."""
    witness.permit("one.example.com", zone.HTTP_PORT)
    targets = [*METADATA, *EMBEDDED, *OWN]
    program = f"""
import json, socket
found = {{}}
for host in {[*targets, "rebind.example.com", "own.example.com", "one.example.com"]!r}:
    try:
        with socket.create_connection((host, 80), 90) as opened:
            opened.sendall(b"GET / HTTP/1.0\\r\\nHost: " + host.encode() + b"\\r\\n\\r\\n")
            found[host] = opened.makefile("rb").read().decode("latin-1")[:20]
    except OSError as error:
        found[host] = str(error)
print(json.dumps(found))
"""
    run = world.machine.run(ANYTHING, ["python3", "-c", program], timeout_s=600)
    met = run.json()
    assert met.pop("one.example.com").startswith("HTTP/1.1 200"), run
    assert {host: answer for host, answer in met.items() if " 200" in answer} == {}
    assert "warning" in run.stderr
