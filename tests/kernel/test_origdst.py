"""What the accepting side is told of a redirected connection, asked the way any proxy could: getsockopt(2).

Bare hooks, no proxy: listeners in a network namespace with only loopback, opened from the proxy's cgroup, and a client
in the sandbox's cgroup that dials addresses which do not exist.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import subprocess
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.kernel import abi, bpffs, cgroup, libc, loader, netns
from nono_ebpf.kernel.hooks import Side
from nono_ebpf.kernel.origdst import SocketOrigins, write_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.kernel]

SO_ORIGINAL_DST = 80
CLIENT = """
import os, socket, sys
group, address, port = sys.argv[1:]
open(f"{group}/cgroup.procs", "w").write("0")
s = socket.create_connection((address, int(port)), 10)
print(s.getpeername()[:2], flush=True)
s.recv(1)
"""


class Bench:
    """The hooks on two scratch cgroups, and the listeners in a namespace that `client` enters."""

    def __init__(self) -> None:
        self.top = cgroup.Cgroup.create(cgroup.hierarchy() / f"nono-ebpf-probe-{secrets.token_hex(4)}")
        self.groups = {side: cgroup.Cgroup.create(self.top.path / side) for side in Side}
        self.pins = bpffs.ensure() / f"probe_{secrets.token_hex(4)}"
        self.listeners, self._netns = _in_namespace(self.groups[Side.PROXY])
        with loader.Loader() as load:
            self.maps = load.attach({side: group.path for side, group in self.groups.items()}, self.pins)
        self.set_alive(1)

    def set_alive(self, alive: int) -> None:
        settings = abi.nono_settings(
            netns_cookie=self.listeners.netns_cookie,
            proxy_port_be=socket.htons(self.listeners.proxy_port),
            dns_port_be=socket.htons(self.listeners.dns_port),
            alive=alive,
        )
        write_settings(self.maps.settings, settings)

    def client(self, address: str, port: int) -> subprocess.Popen[str]:
        command = ["nsenter", f"--net=/proc/self/fd/{self._netns}", "/usr/bin/python3", "-c", CLIENT]
        arguments = [str(self.groups[Side.SANDBOX].path), address, str(port)]
        return subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[self._netns]
        )

    def close(self) -> None:
        loader.remove_pins(self.pins)
        self.maps.close()
        os.close(self._netns)
        for sock in self.listeners.all:
            sock.close()
        self.top.remove()


def _in_namespace(group: cgroup.Cgroup) -> tuple[netns.Listeners, int]:
    """Made by a child: a process joins a cgroup as a whole. Its sockets and namespace come back as descriptors."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            group.join()
            libc.unshare(libc.CLONE_NEWNET)
            netns.bring_up_loopback()
            with netns.open_listeners() as opened:
                handle = os.open("/proc/self/ns/net", os.O_RDONLY)
                socket.send_fds(theirs, [b"x"], [*(sock.fileno() for sock in opened.all), handle])
        finally:
            os._exit(0)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 1, 7)
    os.waitpid(pid, 0)
    ours.close()
    return netns.Listeners.of([socket.socket(fileno=fd) for fd in fds[:6]]), fds[6]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def _accepted(bench: Bench, address: str, port: int) -> tuple[socket.socket, subprocess.Popen[str]]:
    client = bench.client(address, port)
    listener = bench.listeners.proxy[":" in address and not address.startswith("::ffff:")]
    listener.settimeout(20)
    connection, _ = listener.accept()
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
    command = ["nsenter", f"--net=/proc/self/fd/{bench._netns}", "/usr/bin/python3", "-c"]
    dial = f"import socket; socket.create_connection(('127.0.0.1', {bench.listeners.proxy_port})).recv(1)"
    with subprocess.Popen([*command, dial], pass_fds=[bench._netns]):
        bench.listeners.proxy[0].settimeout(20)
        connection, _ = bench.listeners.proxy[0].accept()
        with connection:
            assert SocketOrigins().take(connection) is None
            with pytest.raises(OSError, match=r"not available|No such file"):  # without and with netfilter's NAT
                connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)


def test_no_one_is_redirected_while_nobody_serves(bench: Bench) -> None:
    """The map that says "alive" is asked at every connect: refused at once, not queued."""
    bench.set_alive(0)
    try:
        with bench.client("203.0.113.9", 443) as client:
            assert client.stderr is not None
            assert "ConnectionRefusedError" in client.stderr.read()
    finally:
        bench.set_alive(1)
