"""A port of loopback that means the host's: connects to it go to the proxy, and nothing else of loopback does.

Bare hooks; the proxy's listener tells what was asked for, and servers inside what was left alone.
"""

from __future__ import annotations

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from kit.hooked import Bench

from nono_ebpf.errors import SandboxError
from nono_ebpf.kernel import libc, netns
from nono_ebpf.kernel.origdst import SocketOrigins

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from nono_ebpf.model import FlowOrigin

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PORT = 8080
OPEN = (1, 63, 64, PORT, 65535)
TCP, MPTCP = socket.IPPROTO_TCP, 262
# "::ffff:127.0.0.1" is IPv4 from a socket of IPv6.
WAYS = [("127.0.0.1", TCP), ("::1", TCP), ("::ffff:127.0.0.1", TCP), ("127.0.0.1", MPTCP), ("::1", MPTCP)]

CONNECT = """
import socket, sys
address, port, protocol = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, protocol)
s.settimeout(60)
s.connect((address, port))
print(s.getpeername()[:2], flush=True)
s.recv(1)
"""
# By what error each port of 127.0.0.1 refuses; nobody inside listens on any.
OUTCOMES = """
import errno, json, socket, sys
def told(port):
    with socket.socket() as s:
        s.settimeout(60)
        return errno.errorcode.get(s.connect_ex(("127.0.0.1", port)), "connected")
print(json.dumps({port: told(int(port)) for port in sys.argv[1:]}))
"""
# A server inside on BIND, a client that says "inside" to CONNECT: what the server received, by TCP and by UDP.
MEET = """
import json, socket, sys
bind, connect, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def stream():
    with socket.create_server((bind, port), family=family(bind)) as server:
        server.settimeout(60)
        with socket.create_connection((connect, port), 60) as client:
            accepted = server.accept()[0]
            client.sendall(b"inside")
            with accepted:
                return [accepted.recv(100).decode(), client.getpeername()[:2]]
def datagram():
    with socket.socket(family(bind), socket.SOCK_DGRAM) as server:
        server.bind((bind, port))
        server.settimeout(60)
        with socket.socket(family(connect), socket.SOCK_DGRAM) as client:
            client.connect((connect, port))
            client.send(b"connected")
        first = server.recv(100).decode()
        with socket.socket(family(connect), socket.SOCK_DGRAM) as client:
            client.sendto(b"addressed", (connect, port))
        return [first, server.recv(100).decode()]
print(json.dumps({"stream": stream, "datagram": datagram}[sys.argv[4]]()))
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench(OPEN)
    yield made
    made.close()


def _asked_for(bench: Bench, *, v6: bool = False) -> FlowOrigin:
    """Where the next connection to the proxy was going; it is ended."""
    with bench.accept(v6=v6) as connection:
        origin = SocketOrigins().take(connection)
        assert origin is not None
        return origin


def _met(bench: Bench, bind: str, connect: str, port: int, kind: str) -> Any:
    return json.loads(bench.run(MEET, bind, connect, port, kind))


@pytest.mark.parametrize(("address", "protocol"), WAYS)
def test_an_opened_port_leads_to_the_proxy(bench: Bench, address: str, protocol: int) -> None:
    """Which is told the address and port that were asked for, and whose connection it is; the client sees the same."""
    with bench.client(CONNECT, address, PORT, protocol) as client:
        origin = _asked_for(bench, v6=address == "::1")
        assert client.stdout is not None
        assert client.stdout.readline() == f"{(address, PORT)}\n"
    assert (str(origin.destination.address), origin.destination.port) == (address.removeprefix("::ffff:"), PORT)
    assert origin.process.pid == client.pid


def test_opened_ports_are_exact(bench: Bench) -> None:
    """Of all neighbours of a listed port in the map, and of those whose bytes are swapped, none is opened."""
    swapped = [int.from_bytes(port.to_bytes(2, "little"), "big") for port in OPEN]
    others = {port + step for port in OPEN for step in (-64, -1, 1, 64)} | set(swapped)
    asked = sorted(port for port in {*others, *OPEN} if 0 < port < 65536)
    outcomes = json.loads(bench.run(OUTCOMES, *asked))
    assert {int(port) for port, outcome in outcomes.items() if outcome == "connected"} == set(OPEN)
    assert {outcome for port, outcome in outcomes.items() if int(port) not in OPEN} == {"ECONNREFUSED"}
    for port in sorted(OPEN):
        assert _asked_for(bench).destination.port == port


LOOPBACK = [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")]


@pytest.mark.parametrize(("bind", "connect"), LOOPBACK)
def test_other_ports_are_the_sandboxs_own(bench: Bench, bind: str, connect: str) -> None:
    """A server inside and its client meet there, and nothing lies between them."""
    port = PORT + 1
    assert _met(bench, bind, connect, port, "stream") == ["inside", [connect, port]]


@pytest.mark.parametrize(
    ("bind", "connect"), [("127.0.0.5", "127.0.0.5"), ("0.0.0.0", "127.0.0.5"), ("0.0.0.0", "0.0.0.0"), ("::", "::")]
)
def test_other_addresses_are_the_sandboxs_own(bench: Bench, bind: str, connect: str) -> None:
    """A server inside can have an opened port too; what is not written 127.0.0.1 or ::1 leads to it."""
    received, _ = _met(bench, bind, connect, PORT, "stream")
    assert received == "inside"


@pytest.mark.parametrize(("bind", "connect"), LOOPBACK)
def test_datagrams_are_the_sandboxs_own(bench: Bench, bind: str, connect: str) -> None:
    """An opened port is one of TCP."""
    assert _met(bench, bind, connect, PORT, "datagram") == ["connected", "addressed"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_inside_does_not_stand_in_for_the_proxy(bench: Bench, address: str) -> None:
    """While nobody serves, an opened port is refused, though a server inside listens on that very address."""
    bench.set_alive(0)
    try:
        with bench.client(MEET, address, address, PORT, "stream") as client:
            assert client.stderr is not None
            assert "ConnectionRefusedError" in client.stderr.read()
    finally:
        bench.set_alive(1)


def test_without_the_setting_no_port_is_opened(bench: Bench) -> None:
    """Whatever the map holds: it is not looked at."""
    bench.set_alive(1, opens_ports=False)
    try:
        assert _met(bench, "127.0.0.1", "127.0.0.1", PORT, "stream") == ["inside", ["127.0.0.1", PORT]]
    finally:
        bench.set_alive(1)


# --- our own listeners


@pytest.mark.parametrize(
    ("opened", "left"),
    [
        (range(32768, 60000), range(60000, 61000)),
        (range(1024, 65536), range(54, 1024)),
        ({*range(65536)} - {700, 701}, range(700, 702)),
    ],
    ids=["most-of-the-usual", "all-but-the-privileged", "all-but-two"],
)
def test_our_listeners_have_other_ports(opened: Collection[int], left: range) -> None:
    """A port cannot be the proxy's and the host's: nobody could tell which is meant."""
    with ThreadPoolExecutor(1) as pool:  # a thread has a network namespace of its own, which ends with it
        ports = pool.submit(_ports_of_listeners, opened).result()
    assert ports <= set(left)
    assert len(ports) == 2


def _ports_of_listeners(avoid: Collection[int]) -> set[int]:
    libc.unshare(libc.CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with netns.open_listeners(avoid) as opened:
        return {opened.proxy_port, opened.dns_port}


def test_no_port_is_left() -> None:
    """One line that says so, and no endless search."""
    with pytest.raises(SandboxError, match="every port of loopback is opened"):
        netns.open_listeners(range(1, 65536))
