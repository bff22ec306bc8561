"""A program that nono confines, inside a sandbox of ours: both hold, and each does what the other cannot.

nono's Landlock judges files and ports of whatever host, before any hook of ours sees a connection; what it lets through
is redirected and judged by host. Nested domains, its system call filter and ours, and no_new_privs do not get in each
other's way.

    one.example.com:7     permitted by both       two.example.com:7   no rule of ours has the host
    one.example.com:4000  no Landlock rule has the port, a rule of ours does
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import zone
from kit.abilities import landlock_abi
from kit.expect import missing

if TYPE_CHECKING:
    from kit.machine import Machine, Run
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

CONFINED = str(Path(__file__).parent / "confined.py")
JUDGES_PORTS = 4  # landlock(7): its interface since Linux 6.7
OPEN, DENIED, OTHER_PORT = (
    f"one.example.com:{zone.ECHO_PORT}",
    f"two.example.com:{zone.ECHO_PORT}",
    "one.example.com:4000",
)
LITERAL = f"{zone.v4('echo.example.com')}:{zone.ECHO_PORT}"
TARGETS = [OPEN, DENIED, OTHER_PORT, LITERAL]
NO_NAME = "Name or service not known"
RESET = "ECONNRESET"


@pytest.fixture(autouse=True)
def _nono() -> None:
    """nono's package, and a kernel on which it can do what these tests ask of it."""
    if find_spec("nono_py") is None:
        missing("nono-py", "nono's Python package is not installed")
    if landlock_abi() < JUDGES_PORTS:
        missing("landlock-ports", f"Landlock has ABI {landlock_abi()}, {JUDGES_PORTS} is needed")


@pytest.fixture
def secret(machine: Machine) -> str:
    """A file that everybody may read, outside of what the program lets itself read."""
    path = machine.home / "secret"
    path.write_text("secret")
    path.chmod(0o644)
    return str(path)


def _run(world: World, *arguments: str) -> Run:
    rules = [OPEN, OTHER_PORT]
    options = [part for rule in rules for part in ("--allow-domain", rule)]
    run = world.machine.run(options, [sys.executable, CONFINED, *arguments])
    assert run.returncode == 0, run.stderr
    return run


def _redirected(run: Run) -> set[tuple[str, str]]:
    """(decision, host:port) of what came to us without the client's knowing."""
    flows = [each for each in run.records if each["event"] == "flow" and each["mode"] == "redirect"]
    return {(each["decision"], f"{each['target']}:{each['port']}") for each in flows}


def _reached(world: World) -> set[str]:
    return {seen.address for seen in world.seen if seen.service == "echo"}


@pytest.mark.parametrize("way", ["landlock", "auto"])
def test_landlock_judges_the_port_and_we_the_host(world: World, secret: str, way: str) -> None:
    """Of three connections one is refused by Landlock, unseen by us, and one by us, which Landlock cannot."""
    run = _run(world, way, secret, *TARGETS)
    told = run.json()
    assert told["file"] == "EACCES"
    assert told["straight"] == {OPEN: "reached", DENIED: NO_NAME, OTHER_PORT: "EACCES", LITERAL: RESET}
    assert set(told["proxy"].values()) == {"EACCES"}
    assert _redirected(run) == {("allow", OPEN), ("deny", LITERAL)}
    assert run.flows("deny", mode="dns", target="two.example.com")


def test_landlock_alone_lets_every_host_be_reached(world: World, secret: str) -> None:
    """The control: outside, the program reaches what the sandbox denies, on the port it allowed itself."""
    done = world.machine.bare(
        [sys.executable, CONFINED, "landlock", secret, DENIED], env={"HTTP_PROXY": "http://a:b@127.0.0.1:9"}
    )
    assert f'"{DENIED}": "reached"' in done.stdout, done.stderr
    assert _reached(world) & {zone.v4("two.example.com"), zone.v6("two.example.com")}


@pytest.mark.parametrize(("way", "file"), [("external", "reached"), ("seccomp-external", "EACCES")])
def test_the_network_is_left_to_us(world: World, secret: str, way: str, file: str) -> None:
    """Told that somebody else judges connections, nono judges files at most; what no rule allows still goes nowhere."""
    run = _run(world, way, secret, *TARGETS)
    told = run.json()
    assert told["file"] == file
    assert told["straight"] == {OPEN: "reached", DENIED: NO_NAME, OTHER_PORT: "reached", LITERAL: RESET}
    assert told["proxy"] == {OPEN: "reached", DENIED: "403", OTHER_PORT: "reached", LITERAL: "403"}
    assert _reached(world) <= {zone.v4("one.example.com"), zone.v6("one.example.com")}
    assert not [seen for seen in world.seen if "two.example.com" in seen.what]


@pytest.mark.parametrize("way", ["proxy-alone", "seccomp"])
def test_our_proxy_is_all_there_is(world: World, secret: str, way: str) -> None:
    """Confined to the port of HTTP_PROXY, a client reaches by it what the rules permit, and nothing without it.

    nono's system call filter leaves no datagrams, and so no names but those that the proxy looks up.
    """
    run = _run(world, way, secret, *TARGETS)
    told = run.json()
    assert told["file"] == "EACCES"
    assert "reached" not in told["straight"].values()
    assert told["straight"][LITERAL] == "EACCES"
    assert told["proxy"] == {OPEN: "reached", DENIED: "403", OTHER_PORT: "reached", LITERAL: "403"}
    assert not _redirected(run)
    assert run.flows("allow", mode="connect", target="one.example.com", port=zone.ECHO_PORT)


def test_nonos_own_proxy_is_redirected_like_any_client(world: World, secret: str) -> None:
    """A child confined to a proxy of nono's own reaches what both allow: that proxy's connections come to ours."""
    third = f"other.example.net:{zone.ECHO_PORT}"
    run = _run(world, "own-proxy", secret, "one.example.com,two.example.com", OPEN, DENIED, third)
    told = run.json()
    assert told["file"] == "EACCES"
    assert "reached" not in told["straight"].values()
    assert told["proxy"] == {OPEN: "reached", DENIED: "502", third: "403"}
    assert _redirected(run) == {("allow", OPEN)}
