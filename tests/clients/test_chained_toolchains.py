"""Unmodified tool chains in a sandbox whose way out is a company's proxy: Squid or tinyproxy.

One sandbox for each proxy, all clients in it, a few at a time. Each asks for a host of its own, which tells afterwards
whose a line of the proxy's access log, a caller of a test host and an audit record are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import test_chained_clients as chained
import test_explicit_clients as explicit
from kit import packages, zone
from kit.expect import require
from kit.machine import CA_BUNDLE
from kit.patience import patient
from kit.witness import Wire

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kit.machine import Run, Step
    from kit.packages import Packages
    from kit.servers import Service
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

# Fixtures, of which every module that uses them needs the names.
open_office, stores = chained.open_office, explicit.stores
Callers = list[tuple[str, str]]

PROXY = f"{zone.GATEWAY_V4}:{chained.PORT}"
STORED = ("pip", "npm", "maven")
AT_ONCE = 3
TIMEOUT_S = patient(600)
modes = pytest.mark.parametrize(
    ("mode", "scheme", "told"),
    [
        ("squid password", "https", "right"),
        ("tinyproxy", "https", "right"),
        ("squid", "https", "none"),
        ("tinyproxy password", "http", "right"),
    ],
    ids=lambda word: word.replace(" ", "-"),
)


@dataclass(frozen=True)
class Errand:
    """One client, and what it is to fetch."""

    client: explicit.Client
    task: explicit.Task
    stored: bool

    @property
    def port(self) -> int:
        """Of the server that has it."""
        if self.stored:
            return packages.HTTPS_PORT if self.task.scheme == "https" else packages.HTTP_PORT
        return zone.HTTPS_PORT if self.task.scheme == "https" else zone.HTTP_PORT

    @property
    def target(self) -> str:
        """What the proxy is to be asked for."""
        return f"{self.task.host}:{self.port}"

    @property
    def mode(self) -> str:
        """The audit's word for how the client gets to nono-ebpf."""
        return self.client.mode_of(self.task) if self.task.told else "redirect"


@pytest.fixture(scope="module")
def clients(java: Callable[[str], list[str]], undici: Callable[[str], list[str]]) -> Mapping[str, explicit.Client]:
    """The clients by name, all of which are there."""
    *launch, directory, _, _ = java("")
    sources = str(explicit.PROGRAMS / "Proxied.java")
    subprocess.run([require("javac"), "-d", directory, sources], check=True)
    basic = [f"-Djdk.http.auth.{what}.disabledSchemes=" for what in ("tunneling", "proxying")]
    own = [launch[0], *basic, *launch[1:], directory]
    options = " ".join(["-XX:TieredStopAtLevel=1", *(word for word in launch if word.startswith("-Djavax"))])
    node = {"NODE_EXTRA_CA_CERTS": CA_BUNDLE}
    found = {
        "java": explicit.Client("java", explicit._java(own, "Proxied", "http-client")),
        "maven": explicit.Client(
            "mvn", explicit._maven, explicit._resolved, explicit._maven_files, {"MAVEN_OPTS": options}
        ),
        "undici": explicit.Client("node", explicit._undici(undici, "with_undici.mjs"), trust=node, mode="connect"),
        **{name: explicit.CLIENTS[name] for name in ("pip", "npm", "git", "wget")},
    }
    for client in found.values():
        require(client.program)
    return found


@pytest.fixture
def callers(world: World, stores: Packages, monkeypatch: pytest.MonkeyPatch) -> Callers:
    """(Host, the address that it was asked for from) of each request to the web servers and those with packages."""
    stores.seen.clear()
    stores.callers.clear()
    note = world.servers._note

    def note_caller(service: Service, transport: asyncio.BaseTransport, what: str) -> None:
        note(service, transport, what)
        if service in ("http", "https"):
            host = what.split()[1].partition("/")[0]
            stores.callers.append((host, transport.get_extra_info("peername")[0].removeprefix("::ffff:")))

    monkeypatch.setattr(world.servers, "_note", note_caller)
    return stores.callers


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    """What leaves the machine."""
    made = Wire(world.namespaces.machine)
    yield made
    made.close()


def errands(world: World, clients: Mapping[str, explicit.Client], scheme: str, told: str, label: str) -> list[Errand]:
    """One for each client, each to a host of its own that has an IPv4 address alone, as the proxy's own."""
    home = world.machine.home
    tasks = [
        explicit.Task(scheme, told, f"v4.{host}", home / f"{label}-{name}")
        for name, host in zip(clients, zone.HOSTS, strict=False)
    ]
    return [Errand(client, task, name in STORED) for (name, client), task in zip(clients.items(), tasks, strict=True)]


def run_all(office: chained.Office, wanted: Sequence[Errand]) -> Run:
    """All of them in one sandbox that may reach the targets."""
    machine = office.world.machine
    steps = [
        {
            "proxy": errand.task.proxy,
            "files": errand.client.files(errand.task),
            "command": machine._shown(errand.client.command(errand.task)),
        }
        for errand in wanted
    ]
    options = [*office.options, "--upstream-ca", str(office.world.ca_file)]
    options += chained.allowing(*(errand.target for errand in wanted))
    trust = {name: value for errand in wanted for name, value in errand.client.trust.items()}
    command = [sys.executable, explicit.STEPS, json.dumps(steps), str(AT_ONCE)]
    return machine.run(options, command, env=trust, timeout_s=TIMEOUT_S)


def assert_chained(run: Run, errand: Errand, step: Step) -> None:
    """It got what it came for, and the audit says on which way."""
    assert step.returncode == 0, step
    errand.client.check(step, errand.task)
    records = [each for each in run.flows("allow", target=errand.task.host) if each["event"] != "dns"]
    ways = {(each["mode"], each.get("upstream_proxy"), each.get("resolved_address")) for each in records}
    assert ways == {(errand.mode, PROXY, PROXY)}, records


def assert_only_the_proxy_was_dialled(wire: Wire) -> None:
    """Nothing has left the machine for anywhere else: no test host, no DNS."""
    assert {(sent.protocol, sent.address, sent.port) for sent in wire.left()} == {
        ("tcp", zone.GATEWAY_V4, chained.PORT)
    }


@modes
def test_toolchains(
    world: World,
    open_office: Callable[..., chained.Office],
    clients: Mapping[str, explicit.Client],
    callers: Callers,
    wire: Wire,
    mode: str,
    scheme: str,
    told: str,
) -> None:
    """Every client works, told of our proxy or not; its host sees the company's proxy, which alone we dial."""
    wanted = errands(world, clients, scheme, told, mode.replace(" ", "-"))
    office = open_office(mode)
    run = run_all(office, wanted)
    for errand, step in zip(wanted, run.steps(), strict=True):
        assert_chained(run, errand, step)
    office.was_asked_for(*(errand.target for errand in wanted))
    seen = {(host.partition(":")[0], caller) for host, caller in callers}
    assert seen == {(errand.task.host, zone.GATEWAY_V4) for errand in wanted}
    assert_only_the_proxy_was_dialled(wire)
    chained.assert_kept(run, chained.PASSWORD)


@pytest.mark.parametrize("told", ["right", "none"])
def test_the_proxy_is_gone(
    world: World,
    open_office: Callable[..., chained.Office],
    clients: Mapping[str, explicit.Client],
    callers: Callers,
    wire: Wire,
    told: str,
) -> None:
    """No client gets anything, and nobody goes another way."""
    wanted = errands(world, clients, "https", told, f"gone-{told}")
    office = open_office("squid password")
    office.proxy.kill()
    run = run_all(office, wanted)
    for errand, step in zip(wanted, run.steps(), strict=True):
        assert step.returncode != 0, (errand, step)
        reasons = {each.get("reason") for each in run.flows("allow", target=errand.task.host) if each["event"] != "dns"}
        expected = f"connect {errand.target}: the upstream proxy {PROXY} "
        assert reasons, (errand, step)
        assert all(reason is not None and reason.startswith(expected) for reason in reasons), reasons
    assert (callers, world.seen, office.proxy.asked) == ([], [], [])
    assert_only_the_proxy_was_dialled(wire)
