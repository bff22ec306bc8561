"""A second link of the test machine, to hosts of a test's own: their ports are free, and they have names of their own.

::

    ┌─ netns …-machine ─────────┐    veth    ┌─ netns …-side ─────────────────┐
    │ nono-ebpf run … 192.0.2.1 ├────────────┤ 192.0.2.10, .11, …  as asked   │
    └───────────────────────────┘            └────────────────────────────────┘

Names come from `--resolve`, certificates from a CA that is made here. `SideNetwork.close` removes everything.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trustme
from kit.namespaces import _batch, _remove, inside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MACHINE_V4 = "192.0.2.1"
_NET, _FIRST = "192.0.2", 10


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as files that root alone may read (PEM)."""

    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """For a server that shows it."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.chain, self.key)
        return made


class SideNetwork:
    """Hosts called `names`, each with an address of its own, on a link of the namespace `machine`.

    No certificate is for one that is among `impostors`. `work` is a directory that exists.
    """

    def __init__(self, machine: str, work: Path, names: tuple[str, ...], impostors: tuple[str, ...] = ()) -> None:
        self.addresses: Mapping[str, str] = {name: f"{_NET}.{_FIRST + i}" for i, name in enumerate(names)}
        self.netns = f"nono-test-{os.getpid()}-side"
        self._machine = machine
        self.certificate, self.ca_file = _certified(work, [name for name in names if name not in impostors])
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        _batch(self._machine, [f"link add mach1 type veth peer name side0 netns {self.netns}"])
        addresses = [f"addr add {address}/24 dev side0" for address in self.addresses.values()]
        _batch(self.netns, ["link set lo up", "link set side0 up", *addresses])
        _batch(self._machine, ["link set mach1 up", f"addr add {MACHINE_V4}/24 dev mach1"])

    @property
    def options(self) -> list[str]:
        """For `nono-ebpf run` to find the hosts and to believe them."""
        resolved = [word for name, at in self.addresses.items() for word in ("--resolve", f"{name}:{at}")]
        return [*resolved, "--upstream-ca", str(self.ca_file)]

    def listen(self, port: int) -> socket.socket:
        """A listener on every address of the hosts."""
        return inside(self.netns, partial(socket_on_every_address, port))

    def close(self) -> None:
        """Remove the hosts and the link: without its name a namespace lives as long as its last connection."""
        subprocess.run(["ip", "-n", self._machine, "link", "del", "mach1"], check=False, capture_output=True)
        _remove(self.netns)


def socket_on_every_address(port: int) -> socket.socket:
    """A listener for IPv4 in the namespace of the calling thread."""
    return socket.create_server(("0.0.0.0", port), backlog=512)


def _certified(work: Path, names: Sequence[str]) -> tuple[Certificate, Path]:
    authority = trustme.CA()
    leaf = authority.issue_cert(*names)
    made = Certificate(work / "side.pem", work / "side.key")
    leaf.cert_chain_pems[0].write_to_path(str(made.chain))
    made.key.touch(0o600)
    leaf.private_key_pem.write_to_path(str(made.key))
    ca_file = work / "side-ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return made, ca_file
