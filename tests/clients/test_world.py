"""The controls of every experiment: outside a sandbox all of the world is within reach, and it is seen.

A denial in the other tests is the sandbox's doing only if the same thing works here.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
from kit import zone
from kit.expect import require
from kit.namespaces import NETNS_DIR, Namespaces

if TYPE_CHECKING:
    from pathlib import Path

    from kit.world import World

pytestmark = [pytest.mark.root]

_SEND = "import socket, sys; socket.socket(2, 2).sendto(b'out', (sys.argv[1], int(sys.argv[2])))"
_TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 90) as server:
    server.sendall(b"out")
    print(server.recv(100).decode())
"""


@pytest.mark.parametrize("host", ["two.example.com", "v4.two.example.com", "v6.two.example.com", "other.example.net"])
def test_https(world: World, host: str) -> None:
    """Every name is served, with a certificate for it, and tells which SNI and Host it was asked for."""
    done = world.machine.bare([require("curl"), "-sS", "--cacert", str(world.ca_file), f"https://{host}/a?b"])
    answer = json.loads(done.stdout)
    assert (answer["sni"], answer["host"], answer["path"]) == (host, host, "/a?b")
    assert [seen.what for seen in world.seen if seen.service == "https"] == [f"GET {host}/a?b"]


@pytest.mark.parametrize("address", [zone.v4("echo.example.com"), zone.v6("echo.example.com"), zone.METADATA_V4])
def test_streams(world: World, address: str) -> None:
    """TCP services answer on every address, and are seen to."""
    done = world.machine.bare([sys.executable, "-c", _TALK, address, str(zone.ECHO_PORT)])
    assert done.stdout == "out\n", done
    assert [(seen.address, seen.what) for seen in world.seen] == [(address, "out")]


def test_datagrams(world: World) -> None:
    """A datagram that leaves the machine is seen before anything that is sent after it."""
    address = zone.v4("echo.example.com")
    world.machine.bare([sys.executable, "-c", _SEND, address, str(zone.SINK_UDP_PORT)])
    world.machine.bare([sys.executable, "-c", _TALK, address, str(zone.ECHO_PORT)])
    assert [seen.service for seen in world.seen] == ["udp", "echo"]


def test_long_dns_answer(world: World) -> None:
    """An answer that does not fit a datagram is had over TCP."""
    count = "import socket; print(len({each[4][0] for each in socket.getaddrinfo('many.example.com', 1)}))"
    assert world.machine.bare([sys.executable, "-c", count]).stdout == "80\n"


def own_namespaces() -> set[Path]:
    """Of the names in use, those with this process's id: others' come and go."""
    return set(NETNS_DIR.glob(f"*-{os.getpid()}-*"))


def test_namespaces_go() -> None:
    """Closing removes both namespaces, also when making them failed half-way."""

    class Broken(Namespaces):
        def _make(self) -> None:
            self.machine, self.world = f"{self.machine}-broken", f"{self.world}-broken"
            super()._make()
            raise RuntimeError

    before = own_namespaces()
    with pytest.raises(RuntimeError):
        Broken()
    assert own_namespaces() == before


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program skips the test, or fails it when NONO_EXPECT names the program."""
    monkeypatch.setenv("NONO_EXPECT", "curl")
    with pytest.raises(pytest.skip.Exception):
        require("no-such-program")
    monkeypatch.setenv("NONO_EXPECT", "curl, no-such-program")
    with pytest.raises(pytest.fail.Exception):
        require("no-such-program")
