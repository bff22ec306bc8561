"""Two network namespaces joined by a veth pair, and sockets opened inside them.

::

    machine (nono-ebpf runs here)                     world (the test hosts)
    mach0  203.0.113.1/24  2001:db8::1/64  ========== world0  203.0.113.10.. .254   2001:db8::10.. ::254
           default via .254 and ::254                         lo also holds 169.254.169.254

Both are named after the test process, and `Namespaces.close` removes them; the veth pair goes with them.
Nothing else on the real host is touched. `ip netns exec` is never used: it remounts /sys and hides cgroupfs.
"""

from __future__ import annotations

import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kit import zone
from pyroute2 import netns

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
NETNS_DIR = Path("/run/netns")
_PREFIX = "nono-test"


def inside(name: str, make: Callable[[], T]) -> T:
    """The result of `make`, called by a thread of its own in namespace `name`; its sockets stay there."""

    def enter() -> T:
        netns.setns(name, flags=0)
        return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


def enter_command(name: str) -> list[str]:
    """What to put before a command for it to start in namespace `name`."""
    return ["nsenter", f"--net={NETNS_DIR / name}", "--"]


def listen_stream(name: str, port: int) -> socket.socket:
    """A listener for TCP on every IPv4 and IPv6 address of namespace `name`."""
    make = partial(socket.create_server, ("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return inside(name, make)


def open_datagram(name: str, address: str, port: int) -> socket.socket:
    """A bound UDP socket in namespace `name`. `address` "::" takes both families."""

    def make() -> socket.socket:
        opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        if opened.family is socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind((address, port))
        return opened

    return inside(name, make)


class Namespaces:
    """The two namespaces, made on construction: both, or a CalledProcessError and nothing."""

    def __init__(self) -> None:
        _sweep()
        self.machine = f"{_PREFIX}-{os.getpid()}-machine"
        self.world = f"{_PREFIX}-{os.getpid()}-world"
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for name in (self.machine, self.world):
            subprocess.run(["ip", "netns", "add", name], check=True)
        _batch(self.machine, [f"link add mach0 type veth peer name world0 netns {self.world}"])
        _batch(self.world, _world_setup())
        _batch(self.machine, _machine_setup())

    def close(self) -> None:
        """Remove both; what still runs in them keeps its own reference."""
        for name in (self.machine, self.world):
            _remove(name)


def _machine_setup() -> list[str]:
    return [
        "link set lo up",
        "link set mach0 up",
        f"addr add {zone.MACHINE_V4}/24 dev mach0",
        f"addr add {zone.MACHINE_V6}/64 dev mach0 nodad",
        f"route add default via {zone.GATEWAY_V4}",
        f"route add ::/0 via {zone.GATEWAY_V6}",
    ]


def _world_setup() -> list[str]:
    hosts = [*zone.addresses(), (zone.GATEWAY_V4, zone.GATEWAY_V6)]
    return [
        "link set lo up",
        "link set world0 up",
        *(f"addr add {v4}/24 dev world0" for v4, _ in hosts),
        *(f"addr add {v6}/64 dev world0 nodad" for _, v6 in hosts),
        f"addr add {zone.DNS_V4}/24 dev world0",
        f"addr add {zone.METADATA_V4}/32 dev lo",
    ]


def _batch(name: str, lines: list[str]) -> None:
    subprocess.run(["ip", "-n", name, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def _remove(name: str) -> None:
    if (NETNS_DIR / name).exists():
        subprocess.run(["ip", "netns", "del", name], check=True)


def _sweep() -> None:
    """Remove what test processes that were killed have left; a name carries its process's id. Others do so as well."""
    for left in NETNS_DIR.glob(f"{_PREFIX}-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            subprocess.run(["ip", "netns", "del", left.name], check=False, capture_output=True)
