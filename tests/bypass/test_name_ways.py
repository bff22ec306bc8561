"""Host names that are nearly permitted: judged in one spelling, label by label, before anybody resolves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attacks import requests
from attacks.base import AUTHORIZED
from kit import zone
from kit.namespaces import inside as in_namespace
from kit.sandboxes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from kit.inside import Agent
    from kit.witness import Witness
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

OK = "HTTP/1.1 200"
REST = "Connection: close\r\n\r\n"
# Malformed: no reading of these is a host.
HOSTILE = [
    "one.example.com\0.other.example.net",
    "other.example.net\0.one.example.com",
    "one.example.com\r\nX: y",
    "one.example.com\nX",
    "one.example.com ",
    " one.example.com",
    "one.example.com%00.other.example.net",
    "one.example.com%2eother.example.net",
    "other.example.net\\.one.example.com",
    "other.example.net\\@one.example.com",
    "one.example.com@other.example.net",
    "one.example.com:80@other.example.net",
    "one.example.com#@other.example.net",
    "[one.example.com]",
    "one.example.com]",
    "one..example.com",
    ".one.example.com",
    "one.example.com..",
    "-one.example.com",
    "one.example.com;other.example.net",
    "one.example.com,other.example.net",
    "one.example.com\t",
    '"one.example.com"',
    "one.example.com:80:80",
    "one.example.com:080x",
    "one.example.com:0",
    "one.example.com:65536",
    "one.example.com:-1",
    "o" * 64 + ".example.com",
    "a." * 127 + "example.com",
]
# Well-formed, and somebody else.
NEARLY = [
    "evilone.example.com",
    "xone.example.com",
    "one.example.com.evil.example.net",
    "one-example.com",
    "oneexample.com",
    "one.example.co",
    "ne.example.com",
    "sub.one.example.com",
    "example.com",
    "one.example.com.other.example.net",
    "one.example.net",
    "www.one.example.com",
    "*.example.com",
    "one.example.comm",
]
UNICODE = [
    "\u043ene.example.com",
    "o\u00adne.exampl\u0435.com",
    "one\u3002example\u3002net",
    "xn--ne-emc.example.com",
    "xn--one.example.com",
    "one.ex\u00e4mple.com",
    "\u24dene.example.net",
    "one.example.com\u200b.evil.example.net",
    "xn--a.example.com",
]


def asked(host: str) -> list[list[str]]:
    """By CONNECT, and in absolute form."""
    raw = host.encode().decode("latin-1")
    target = raw if ":" in raw else f"{raw}:80"
    return [
        [f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}\r\n"],
        [f"GET http://{raw}/ HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}{REST}"],
    ]


def statuses(inside: Agent, host: str) -> set[str]:
    return {answer[:12] for answer in inside.call(requests.to_proxy, asked(host))}


@pytest.mark.bypass("hostile-host-names")
@pytest.mark.parametrize("host", HOSTILE, ids=ascii)
def test_a_hostile_host_is_refused(inside: Agent, host: str) -> None:
    """Whatever a lenient reader would make of it."""
    assert statuses(inside, host) <= {"HTTP/1.1 400", "HTTP/1.1 403"}


@pytest.mark.bypass("label-boundary")
def test_a_name_that_ends_or_begins_like_a_permitted_one_is_another(inside: Agent) -> None:
    """Whole labels are compared."""
    for host in NEARLY:
        assert statuses(inside, host) <= {"HTTP/1.1 403", "HTTP/1.1 400"}, host
    met = inside.call(requests.resolved, NEARLY)
    assert {name for name, outcome in met.items() if not outcome.startswith("no address")} == set()


@pytest.mark.bypass("unicode-names")
@pytest.mark.parametrize("host", UNICODE, ids=ascii)
def test_a_name_that_looks_like_a_permitted_one_is_another(inside: Agent, host: str) -> None:
    """Homographs, soft hyphens, other dots, bad A-labels: in the request as in a lookup."""
    assert statuses(inside, host) <= {"HTTP/1.1 403", "HTTP/1.1 400"}


@pytest.mark.bypass("trailing-dot-and-case")
def test_a_dot_and_case_change_no_verdict(inside: Agent, witness: Witness) -> None:
    """A permitted name in another spelling is that name, and travels on in one spelling."""
    for host in ("one.example.com.", "ONE.Example.COM", "one.EXAMPLE.com."):
        request = f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{AUTHORIZED}{REST}"
        answers = inside.call(requests.to_proxy, [[request]])
        assert [answer[:12] for answer in answers] == [OK]
    assert {seen.what for seen in witness.arrived("http")} == {"GET one.example.com/"}


@pytest.mark.bypass("trailing-dot-and-case", "wildcard-rules", "label-boundary", "shared-addresses")
def test_a_wildcard_and_a_deny_rule_hold_in_every_spelling(
    start_inside: Callable[..., Agent], witness: Witness
) -> None:
    """*.example.com is what is below it; what a deny rule takes out of it stays out, with a dot, in capitals, by its
    address, and although it shares that address with a permitted host.
    """
    witness.permit("one.example.com", zone.HTTP_PORT)
    inside = start_inside(
        "--allow-domain", "*.example.com", "--deny-domain", "two.example.com", "--deny-domain", "db.example.com"
    )
    denied = [
        "two.example.com",
        "two.example.com.",
        "TWO.example.com",
        "Two.Example.Com.",
        "db.example.com",
        "example.com",
        "notexample.com",
        "example.com.evil.example.net",
        "evil-example.com",
    ]
    for host in denied:
        assert statuses(inside, host) == {"HTTP/1.1 403"}, host
    met = inside.call(requests.resolved, denied)
    assert {name for name, outcome in met.items() if not outcome.startswith("no address")} == set()
    first, second = inside.call(
        requests.to_server,
        "one.example.com",
        zone.HTTP_PORT,
        [[f"GET / HTTP/1.1\r\nHost: {host}\r\n{REST}"] for host in ("one.example.com", "two.example.com")],
    )
    assert (first[:12], second[:12]) == (OK, "HTTP/1.1 403")


def _is_quiet(world: World) -> bool:
    """Whether every connection of the machine's is over, LISTEN (0A) and TIME_WAIT (06) left."""

    def tables() -> list[str]:
        return [Path("/proc/thread-self/net", name).read_text() for name in ("tcp", "tcp6")]

    lines = [line for table in in_namespace(world.namespaces.machine, tables) for line in table.splitlines()[1:]]
    return {line.split()[3] for line in lines} <= {"0A", "06"}


@pytest.mark.bypass("empty-allowlist")
def test_no_rule_permits_nothing(world: World, start_inside: Callable[..., Agent], witness: Witness) -> None:
    """Neither a connection nor a lookup, by the proxy or without it."""
    assert eventually(lambda: _is_quiet(world))  # the ends of other tests' connections would be taken for leaks
    witness.forget()
    witness.names.clear()
    witness.targets.clear()
    inside = start_inside()
    hosts = ["one.example.com", "v4.one.example.com", "other.example.net", zone.v4("one.example.com"), "localhost"]
    for host in hosts:
        assert statuses(inside, host) == {"HTTP/1.1 403"}
    met = inside.call(requests.resolved, hosts[:3])
    assert {name for name, outcome in met.items() if not outcome.startswith("no address")} == set()
    for address in (zone.v4("one.example.com"), zone.v6("one.example.com")):
        (answer,) = inside.call(
            requests.to_server, address, 80, [[f"GET / HTTP/1.1\r\nHost: one.example.com\r\n{REST}"]]
        )
        assert answer[:12] == "HTTP/1.1 403"


@pytest.mark.bypass("wildcard-rules", "empty-allowlist")
@pytest.mark.parametrize(
    "rule",
    [
        "www*.example.com",
        "one.*.com",
        "*example.com",
        "*.*",
        "**",
        "",
        ".example.com",
        "one.example.com/path",
        "ftp://one.example.com",
    ],
)
def test_a_rule_with_two_readings_is_refused(world: World, witness: Witness, rule: str) -> None:
    """An embedded wildcard, an empty name, a URL: the command does not start."""
    run = world.machine.run(["--allow-domain", rule], ["true"])
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run


@pytest.mark.bypass("shared-addresses")
def test_a_denied_host_is_denied_on_a_permitted_hosts_address(inside: Agent) -> None:
    """two.example.com lives where one.example.com does: by Host field and by server name it is judged for itself."""
    address = zone.v4("one.example.com")
    for target in (address, "one.example.com"):
        (answer,) = inside.call(
            requests.to_server, target, 80, [[f"GET / HTTP/1.1\r\nHost: two.example.com\r\n{REST}"]]
        )
        assert answer[:12] == "HTTP/1.1 403"
        secure = inside.call(requests.over_tls, target, 443, "two.example.com", "GET / HTTP/1.0\r\n\r\n")
        assert secure.startswith("TLS: ") or secure == "ECONNRESET"


@pytest.mark.bypass("proxy-variables")
def test_a_client_that_takes_no_proxy_is_judged_all_the_same(inside: Agent, witness: Witness) -> None:
    """It is told of the proxy, goes straight to its destination, and ends up there."""
    assert {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} <= set(inside.call(requests.variables))
    good, bad = (f"GET / HTTP/1.1\r\nHost: {host}\r\n{REST}" for host in ("one.example.com", "other.example.net"))
    answers = inside.call(requests.to_server, zone.v4("one.example.com"), 80, [[good], [bad]])
    assert [answer[:12] for answer in answers] == [OK, "HTTP/1.1 403"]
    assert [seen.what for seen in witness.arrived("http")] == ["GET one.example.com/"]
