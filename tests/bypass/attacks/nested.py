"""Root in namespaces of its own making: uid 0, every capability, over nothing that matters."""

# The system calls that an attacker would make:
# ruff: noqa: PTH208

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any

from attacks import kinds, streams
from attacks.base import DONE, in_a_place, in_child, name_of, syscall, told
from attacks.unix import become_root, mount

CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWCGROUP = 0x40000000, 0x20000000, 0x2000000


def with_network(address: str, port: int) -> Any:
    """A network namespace of its own as well: what it can make, and where that leads."""
    return in_child(lambda: _with_network(address, port))


def _with_network(address: str, port: int) -> dict[str, str]:
    begun = become_root(CLONE_NEWNET)
    if begun != DONE:
        return {"user namespace": begun}
    found = kinds.route_changes()
    found["connect"] = told(streams.plain, address, port)
    found["raw"] = told(kinds.raw, address)
    found["packet"] = told(kinds.packet, "lo")
    found["tun"] = kinds.tun("nono1")
    found["back"] = _back_into_the_sandbox()
    found["repair"] = told(streams.repaired, address, port)
    found["mark"] = streams.privileged_options("127.0.0.1")["mark"]
    found["veth into the sandbox"] = _veth_to(1)
    return found


def _back_into_the_sandbox() -> str:
    """The sandbox's network namespace, which belongs to somebody else."""
    try:
        opened = os.open("/proc/1/ns/net", os.O_RDONLY)
    except OSError as error:
        return name_of(error.errno)
    return syscall("setns", opened, CLONE_NEWNET)


def _veth_to(pid: int) -> str:
    """A pair of links, one end in another process's namespace."""
    peer = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, 19, pid)
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    info = kinds._attribute(1, b"veth\0") + kinds._attribute(2, kinds._attribute(1, peer))
    return kinds._ask_route(16, body + kinds._attribute(18, info), create=True)


def without_network(address: str, port: int) -> Any:
    """Root of a user namespace that shares the sandbox's network."""
    return in_child(lambda: _without_network(address, port))


def _without_network(address: str, port: int) -> dict[str, str]:
    begun = become_root()
    if begun != DONE:
        return {"user namespace": begun}
    found = kinds.route_changes()
    found.pop("list links")
    found["raw"] = told(kinds.raw, address)
    found["packet"] = told(kinds.packet, "lo")
    found["tun"] = kinds.tun("nono2")
    found["repair"] = told(streams.repaired, address, port)
    found |= streams.privileged_options("127.0.0.1")
    found["sysctl"] = told(lambda: Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647"))
    found["port 80"] = told(socket.create_server, ("127.0.0.1", 80))
    return found


def mounted() -> Any:
    """The file systems that show or give something of the kernel."""
    return in_a_place(_mounted)


def _mounted(place: str) -> dict[str, str]:
    begun = become_root(CLONE_NEWCGROUP)
    if begun != DONE:
        return {"user namespace": begun}
    mount("tmpfs", place, "tmpfs", 0)
    found = {}
    for kind in (
        "cgroup2",
        "cgroup",
        "bpf",
        "sysfs",
        "debugfs",
        "tracefs",
        "securityfs",
        "devtmpfs",
        "mqueue",
        "proc",
        "configfs",
        "binfmt_misc",
        "nsfs",
        "fuse",
    ):
        target = Path(place, kind)
        target.mkdir()
        found[kind] = told(mount, kind, str(target), kind, 0)
        if kind == "cgroup2" and found[kind] == DONE:
            found |= _cgroups(target)
        if kind == "bpf" and found[kind] == DONE:
            found["bpf entries"] = str(len(os.listdir(target)))
    return found


def _cgroups(top: Path) -> dict[str, str]:
    """What a cgroup file system of our own lets us do."""
    found = {"cgroups": ",".join(sorted(entry.name for entry in top.iterdir() if entry.is_dir()))}
    found["make a cgroup"] = told((top / "nono").mkdir)
    found["join the top"] = told(lambda: (top / "cgroup.procs").write_text("0"))
    return found


def processes() -> Any:
    """A pid namespace too: does it see more than we do?"""
    return in_a_place(_processes)


def _processes(place: str) -> dict[str, Any]:
    begun = become_root(CLONE_NEWPID)
    if begun != DONE:
        return {"user namespace": begun}
    return in_child(lambda: _alone(place))  # type: ignore[no-any-return]


def _alone(place: str) -> dict[str, Any]:
    found: dict[str, Any] = {"mount": told(mount, "proc", place, "proc", 0), "pid": os.getpid()}
    if found["mount"] == DONE:
        found["visible"] = [name for name in os.listdir(place) if name.isdigit()]
    return found


def chained(depth: int) -> list[str]:
    """User namespaces in one another."""

    def deeper(left: int) -> list[str]:
        outcome = become_root()
        return [outcome] if outcome != DONE or not left else [outcome, *in_child(lambda: deeper(left - 1))]

    return in_child(lambda: deeper(depth))  # type: ignore[no-any-return]


def network_file_systems(address: str) -> Any:
    """Mounts for which the kernel itself would open a connection."""
    return in_a_place(lambda place: _network_file_systems(place, address))


def _network_file_systems(place: str, address: str) -> dict[str, str]:
    begun = become_root(CLONE_NEWNET)
    if begun != DONE:
        return {"user namespace": begun}
    kinds_and_options = {
        "nfs": f"addr={address},vers=3,proto=tcp,nolock",
        "nfs4": f"addr={address},clientaddr={address},vers=4",
        "cifs": f"ip={address},user=x,pass=x",
        "smb3": f"ip={address},user=x,pass=x",
        "9p": "trans=tcp,port=7",
        "ceph": "name=x",
        "afs": "",
    }
    return {
        kind: told(mount, f"{address}:/x" if kind != "9p" else address, place, kind, 0, options)
        for kind, options in kinds_and_options.items()
    }
