"""Bare hooks, no proxy: listeners in a network namespace with only loopback, and clients in the sandbox's cgroup."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from typing import TYPE_CHECKING

from kit.patience import patient

from nono_ebpf.kernel import abi, bpffs, cgroup, libc, loader, netns
from nono_ebpf.kernel.hooks import Side
from nono_ebpf.kernel.origdst import write_open_ports, write_settings

if TYPE_CHECKING:
    from collections.abc import Collection

ACCEPT_S = patient(90)
CLIENT_S = patient(90)
_PYTHON = "/usr/bin/python3"
_JOIN = 'open(__import__("sys").argv.pop(1) + "/cgroup.procs", "w").write("0")\n'


class Bench:
    """The hooks on two scratch cgroups, and the listeners in a namespace that clients enter.

    `open_ports`: ports of loopback that lead to the proxy's listener.
    """

    def __init__(self, open_ports: Collection[int] = ()) -> None:
        self._open_ports = open_ports
        self.top = cgroup.Cgroup.create(cgroup.hierarchy() / f"nono-ebpf-probe-{secrets.token_hex(4)}")
        self.groups = {side: cgroup.Cgroup.create(self.top.path / side) for side in Side}
        self._pins = bpffs.ensure() / f"probe_{secrets.token_hex(4)}"
        self.listeners, self._netns = _in_namespace(self.groups[Side.PROXY], open_ports)
        with loader.Loader() as load:
            self.maps = load.attach({side: group.path for side, group in self.groups.items()}, self._pins)
        write_open_ports(self.maps.open_ports, open_ports)
        self.set_alive(1)

    def set_alive(self, alive: int, *, opens_ports: bool | None = None) -> None:
        """Write the settings; `opens_ports` None: as the ports have it."""
        settings = abi.nono_settings(
            netns_cookie=self.listeners.netns_cookie,
            proxy_port_be=socket.htons(self.listeners.proxy_port),
            dns_port_be=socket.htons(self.listeners.dns_port),
            alive=alive,
            opens_ports=bool(self._open_ports) if opens_ports is None else opens_ports,
        )
        write_settings(self.maps.settings, settings)

    def client(self, script: str, *arguments: str | int) -> subprocess.Popen[str]:
        """Start `script`, Python with `arguments` as its sys.argv[1:], in the sandbox's cgroup."""
        group = self.groups[Side.SANDBOX].path
        return self._start([_PYTHON, "-c", _JOIN + script, str(group), *map(str, arguments)])

    def outsider(self, script: str) -> subprocess.Popen[str]:
        """Start `script` in the same namespace, in a cgroup that has no hooks."""
        return self._start([_PYTHON, "-c", script])

    def run(self, script: str, *arguments: str | int) -> str:
        """What `script` printed, run to its end as `client`."""
        with self.client(script, *arguments) as process:
            try:
                printed, errors = process.communicate(timeout=CLIENT_S)
            finally:
                process.kill()
        assert process.returncode == 0, errors
        return printed

    def accept(self, *, v6: bool = False) -> socket.socket:
        """The next connection to the proxy's listener."""
        listener = self.listeners.proxy[v6]
        listener.settimeout(ACCEPT_S)
        return listener.accept()[0]

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        enter = ["nsenter", f"--net=/proc/self/fd/{self._netns}", "--"]
        return subprocess.Popen(
            [*enter, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[self._netns]
        )

    def close(self) -> None:
        """Take everything away."""
        loader.remove_pins(self._pins)
        self.maps.close()
        os.close(self._netns)
        for sock in self.listeners.all:
            sock.close()
        self.top.remove()


def _in_namespace(group: cgroup.Cgroup, avoid: Collection[int]) -> tuple[netns.Listeners, int]:
    """Made by a child: a process joins a cgroup as a whole. Its sockets and namespace come back as descriptors."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            group.join()
            libc.unshare(libc.CLONE_NEWNET)
            netns.bring_up_loopback()
            with netns.open_listeners(avoid) as opened:
                handle = os.open("/proc/self/ns/net", os.O_RDONLY)
                socket.send_fds(theirs, [b"x"], [*(sock.fileno() for sock in opened.all), handle])
        finally:
            os._exit(0)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 1, 7)
    os.waitpid(pid, 0)
    ours.close()
    return netns.Listeners.of([socket.socket(fileno=fd) for fd in fds[:6]]), fds[6]
