"""What the accepting side is told of a redirected connection, asked the way any proxy could: getsockopt(2).

Bare hooks and a client that dials addresses which do not exist.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from kit.hooked import Bench

from nono_ebpf.kernel.hooks import Side
from nono_ebpf.kernel.origdst import SocketOrigins

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.kernel]

SO_ORIGINAL_DST = 80
CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print(s.getpeername()[:2], flush=True)
s.recv(1)
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def _accepted(bench: Bench, address: str, port: int) -> tuple[socket.socket, subprocess.Popen[str]]:
    client = bench.client(CLIENT, address, port)
    connection = bench.accept(v6=":" in address and not address.startswith("::ffff:"))
    return connection, client


@pytest.mark.parametrize("address", ["203.0.113.9", "::ffff:203.0.113.9"])
def test_so_original_dst_ipv4(bench: Bench, address: str) -> None:
    """netfilter's option: a struct sockaddr_in with what the client asked for."""
    connection, client = _accepted(bench, address, 8443)
    with client, connection:
        family, port, raw = struct.unpack("=H2s4s8x", connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
        assert (family, int.from_bytes(port, "big"), socket.inet_ntoa(raw)) == (socket.AF_INET, 8443, "203.0.113.9")


def test_so_original_dst_ipv6(bench: Bench) -> None:
    """The same for IPv6, a struct sockaddr_in6."""
    connection, client = _accepted(bench, "2001:db8::9", 443)
    with client, connection:
        raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
        family, port, address = struct.unpack("=H2s4x16s4x", raw)
        assert (family, int.from_bytes(port, "big")) == (socket.AF_INET6, 443)
        assert ip_address(address) == ip_address("2001:db8::9")


@pytest.mark.parametrize("address", ["203.0.113.9", "2001:db8::9"])
def test_the_private_option_tells_whose_it_is_once(bench: Bench, address: str) -> None:
    """Destination, process, account and cgroup; read once; the client saw what it asked for."""
    connection, client = _accepted(bench, address, 25)
    with client, connection:
        origin = SocketOrigins().take(connection)
        assert origin is not None
        assert str(origin.destination.address) == address
        assert (origin.destination.port, origin.process.pid, origin.process.uid) == (25, client.pid, 0)
        assert origin.process.comm == "python3"
        assert origin.process.cgroup_id == bench.groups[Side.SANDBOX].path.stat().st_ino
        assert SocketOrigins().take(connection) is None
        assert client.stdout is not None
        assert client.stdout.readline() == f"({address!r}, 25)\n"


def test_a_connection_from_outside_the_sandbox_has_no_record(bench: Bench) -> None:
    """Whoever else reaches the listener is nobody's."""
    dial = f"import socket; socket.create_connection(('127.0.0.1', {bench.listeners.proxy_port})).recv(1)"
    with bench.outsider(dial):
        connection = bench.accept()
        with connection:
            assert SocketOrigins().take(connection) is None
            with pytest.raises(OSError, match=r"not available|No such file"):  # without and with netfilter's NAT
                connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)


def test_no_one_is_redirected_while_nobody_serves(bench: Bench) -> None:
    """The map that says "alive" is asked at every connect: refused at once, not queued."""
    bench.set_alive(0)
    try:
        with bench.client(CLIENT, "203.0.113.9", 443) as client:
            assert client.stderr is not None
            assert "ConnectionRefusedError" in client.stderr.read()
    finally:
        bench.set_alive(1)
