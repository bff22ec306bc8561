"""Landlock's second lock on TCP ports: which a confined process connects to, and which it listens on."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from kit.account import PYTHON, RUN
from kit.checkout import opened
from kit.expect import missing
from kit.patience import patient
from landlockpy import abi_version

from nono_ebpf.sandbox.landlock import Feature

pytestmark = [pytest.mark.root, pytest.mark.kernel]

TIMEOUT_S = patient(180)
# What each way of each port comes to: "done", or the name of the error. Nobody is in the way of a bind, nobody listens.
_TOLD = """
import errno, json, socket, sys
def told(attempt, port, family):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as sock:
        try:
            attempt(sock, (host, port))
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"
def both(attempt, port):
    v4, v6 = (told(attempt, port, family) for family in (socket.AF_INET, socket.AF_INET6))
    return v4 if v4 == v6 else [v4, v6]
"""
_INSIDE = """
import errno, json, socket, sys
def told(address, port):
    with socket.socket() as sock:
        return errno.errorcode.get(sock.connect_ex((address, port)), "done")
print(json.dumps({port: told("203.0.113.1", int(port)) for port in sys.argv[1:]}))
"""
BIND, CONNECT = "socket.socket.bind", "socket.socket.connect"


@pytest.fixture(autouse=True)
def _judges_ports() -> None:
    if not Feature.PORTS.here:
        missing("landlock-ports", f"Landlock has ABI {abi_version()}, {Feature.PORTS.abi} is needed")


def confined(domain: str, attempt: str, *ports: int) -> Any:
    """What became of `attempt` at each of the ports in a process that has entered `domain`."""
    script = f"""
from nono_ebpf.sandbox.landlock import Domain
{_TOLD}
domain = {domain}
domain.check()
domain.enter()
print(json.dumps({{port: both({attempt}, port) for port in {list(ports)!r}}}))
"""
    # In a network namespace of its own nobody else has a port.
    alone = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
    done = subprocess.run(
        [*alone, sys.executable, "-I", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {int(port): outcome for port, outcome in json.loads(done.stdout).items()}


def inside(*options: str, ports: tuple[int, ...]) -> Any:
    """How connects to these ports of a host that nobody serves end in a sandbox: refused by our proxy, or before it."""
    command = [*RUN, *options, "--", PYTHON, "-c", _INSIDE, *map(str, ports)]
    done = subprocess.run(
        opened(command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {int(port): outcome for port, outcome in json.loads(done.stdout).items()}


def test_without_ports_nobody_judges_them() -> None:
    """Listening and connecting is free; ports to listen on mean nothing then."""
    assert confined("Domain(listen_ports=frozenset({8000}))", BIND, 8000, 8001) == {8000: "done", 8001: "done"}
    assert confined("Domain()", CONNECT, 9) == {9: "ECONNREFUSED"}


def test_binding_is_refused() -> None:
    """Where ports are judged and none is to listen on; connecting to one does not open it."""
    assert confined("Domain(ports=frozenset({8000}))", BIND, 8000, 8001) == {8000: "EACCES", 8001: "EACCES"}


def test_binding_is_allowed_for_listed_ports() -> None:
    """For those alone, over both families."""
    domain = "Domain(ports=frozenset(), listen_ports=frozenset({8000, 9000}))"
    assert confined(domain, BIND, 7999, 8000, 9000) == {7999: "EACCES", 8000: "done", 9000: "done"}


def test_connecting_is_allowed_for_listed_ports() -> None:
    """For those alone; a port to listen on is no port to connect to."""
    domain = "Domain(ports=frozenset({9}), listen_ports=frozenset({10})).with_ports(11)"
    assert confined(domain, CONNECT, 9, 10, 11, 12) == {
        9: "ECONNREFUSED",
        10: "EACCES",
        11: "ECONNREFUSED",
        12: "EACCES",
    }


def test_ports_of_allowed_hosts_are_open() -> None:
    """Those that a rule writes, 80 and 443 where none is written, 53 for our resolver; Landlock refuses the rest."""
    rules = ("--allow-domain", "nats.internal:4222", "--allow-domain", "gitlab.example.com")
    outcomes = inside(*rules, "--landlock-ports", ports=(22, 53, 80, 443, 4222, 5432))
    assert {port for port, outcome in outcomes.items() if outcome == "EACCES"} == {22, 5432}
