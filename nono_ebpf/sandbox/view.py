"""The sandbox's mount namespace: the host's files as they are, without the host's daemons.

A pathname socket is reached through the file system, whatever the network namespace: docker's would start a process
outside, systemd-resolved's would ask the network. So /run is a fresh tmpfs with nothing of the host but a few known
entries, and other sockets, devices and hierarchies are covered. mount_namespaces(7).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import SandboxError
from nono_ebpf.kernel import libc, mounts
from nono_ebpf.sandbox import devices, sockets
from nono_ebpf.sandbox.covers import Covers
from nono_ebpf.sandbox.sockets import RUN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nono_ebpf.sandbox.user import User

OWN_DIRECTORY = RUN / "nono-ebpf"
CA_BUNDLE = OWN_DIRECTORY / "ca-bundle.pem"
# Directories of /run that hold no daemon's socket, and without which a NixOS or a desktop is not itself.
KEPT_IN_RUN = ("wrappers", "media", "mount", "opengl-driver", "nixos", "shm")
# Where programs look for the system's certificates when no variable says otherwise; the first there is, is the
# system's. Those of Fedora, openSUSE and Arch are one file under several names, or several files with the same content.
CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch, Gentoo, NixOS
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-certificates.crt",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",  # Arch
    "/etc/ssl/certs/ca-bundle.crt",  # NixOS
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cert.pem",
    "/usr/lib/ssl/cert.pem",
    "/usr/local/ssl/cert.pem",
)
# OpenSSL's own defaults, by distribution and as others build it. Where there is no such file, OpenSSL (and Python, Ruby
# and Perl with it) reads a directory of links named by hashes instead, in which what is added to a bundle is not found.
_OPENSSL_DEFAULTS = ("/usr/lib/ssl/cert.pem", "/etc/ssl/cert.pem", "/etc/pki/tls/cert.pem", "/usr/local/ssl/cert.pem")
_READABLE = 0o644

FileId = tuple[int, int]  # st_dev, st_ino


@dataclass(frozen=True, slots=True)
class View:
    """What the sandbox finds in its file system that the host has not, or has otherwise."""

    user: User
    sockets: tuple[Path, ...]  # unix sockets of the host, to be masked
    allowed: Mapping[Path, FileId]  # those that stay, and what was there when they were allowed
    hosts: bytes
    resolv_conf: bytes
    ca_bundle: bytes | None  # PEM, in place of the system's; more can be added to it later
    hidden: tuple[Path, ...] = ()  # files that read as empty and take no writing; not once they are replaced
    hidden_directories: tuple[Path, ...] = ()  # that are empty, whatever is put into them: where secrets lie
    devices: tuple[Path, ...] = ()  # of the host, below /dev, that stay


def hosts_for_sandbox(hosts: str) -> bytes:
    """/etc/hosts with nothing but loopback names: every other name is to be asked for, so that it can be judged."""
    kept = [line for line in hosts.splitlines() if line.split("#")[0].split()[:1] and _is_loopback(line)]
    names = {name for line in kept for name in line.split()[1:]}
    if "localhost" not in names:
        kept = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", *kept]
    return ("\n".join(kept) + "\n").encode()


def _is_loopback(line: str) -> bool:
    address = line.split()[0]
    return address.startswith("127.") or address == "::1"


def resolv_conf_for_sandbox(resolv_conf: str) -> bytes:
    """The host's search list and options; the server's address is anything, the kernel brings queries to ours."""
    kept = [line for line in resolv_conf.splitlines() if line.startswith(("search", "domain", "options"))]
    return ("\n".join(["nameserver 127.0.0.1", *kept]) + "\n").encode()


def enter_working_directory() -> None:
    """The working directory is still the one below the view's mounts: find it by its name again, or take the root.

    To be called with the command's own rights: who owns a directory above it may change what the name means.
    """
    try:
        os.chdir(Path.cwd())
    except OSError:
        os.chdir("/")


def enter(view: View) -> Covers:
    """Leave the host's mount, IPC and cgroup namespaces and put the view in place. Needs root; call as pid 1.

    What hides secrets is the caller's to guard.
    """
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWCGROUP)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    covers = Covers(view.hidden_directories)
    hidden = [*(path for path in view.sockets if path not in view.allowed), *view.hidden]
    hidden += sockets.aliases(hidden)
    kept = mounts.handles([*(RUN / name for name in KEPT_IN_RUN), *view.allowed])
    terminal, allowed_devices = devices.own_terminal(), mounts.handles(view.devices)
    _check_unchanged(view, kept)
    resolv_conf = Path(os.path.realpath("/etc/resolv.conf"))
    _replace_run(view)
    _replace_socket_directories(view, kept)
    _put_back_in_run(kept)
    sockets.hold_in_place(view.user, [*hidden, *covers.all])
    sockets.mask(hidden)
    covers.put(lambda path: is_replaced(view.user, path))
    _replace_files(view, resolv_conf)
    devices.replace_devices(OWN_DIRECTORY, terminal, allowed_devices)
    devices.replace_cgroups(OWN_DIRECTORY)
    libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    covers.check()
    return covers


def open_ca_bundle(view: View) -> int | None:
    """An fd to add certificates by, the caller's, for when nobody inside is root any more; None without a bundle."""
    if view.ca_bundle is None:
        return None
    return os.open(CA_BUNDLE, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def _check_unchanged(view: View, handles: Mapping[Path, int]) -> None:
    for path, allowed in view.allowed.items():
        found = os.fstat(handles[path]) if path in handles else None
        if found is None or (found.st_dev, found.st_ino) != allowed:
            raise SandboxError(f"{path} is not the socket it was when it was allowed")


def _replace_run(view: View) -> None:
    links = {entry.name: entry.readlink() for entry in RUN.iterdir() if entry.is_symlink()}
    mounts.fresh(RUN, "mode=0755")
    for name, target in links.items():
        (RUN / name).symlink_to(target)
    (RUN / "lock").mkdir(mode=0o1777)
    (RUN / "lock").chmod(0o1777)
    runtime = RUN / "user" / str(view.user.uid)
    runtime.mkdir(parents=True)
    runtime.chmod(0o700)
    os.chown(runtime, view.user.uid, view.user.gid)
    OWN_DIRECTORY.mkdir()


def is_replaced(user: User, path: Path) -> bool:
    """Whether the sandbox has nothing of the host there anyway."""
    in_run = path.is_relative_to(RUN) and not any(path.is_relative_to(RUN / name) for name in KEPT_IN_RUN)
    return in_run or sockets.is_replaced(user, path)


def _put_back_in_run(kept: Mapping[Path, int]) -> None:
    """Elsewhere nothing was taken away, and nothing is made."""
    for path, handle in kept.items():
        if path.is_relative_to(RUN):
            mounts.bind_handle(handle, path)
        os.close(handle)


def _replace_socket_directories(view: View, kept: Mapping[Path, int]) -> None:
    for directory, fd in sockets.directories(view.user).items():
        stay = {path.relative_to(directory): kept[path] for path in kept if path.is_relative_to(directory)}
        sockets.replace_directory(OWN_DIRECTORY, fd, view.user, stay)
        os.close(fd)


def _replace_files(view: View, resolv_conf: Path) -> None:
    _replace("hosts", view.hosts, [Path("/etc/hosts")])
    _replace("resolv.conf", view.resolv_conf, [resolv_conf])
    if view.ca_bundle is not None:
        _replace_ca_bundles(view.ca_bundle)


def _replace_ca_bundles(content: bytes) -> None:
    there = [Path(os.path.realpath(bundle)) for bundle in CA_BUNDLES if Path(bundle).exists()]
    # A system without certificates: where the most programs would look, if there is a place to put it.
    wanted = (*_OPENSSL_DEFAULTS, *(() if there else CA_BUNDLES))
    missing = [path for path in map(Path, wanted) if not path.exists() and _belongs_to_root(path.parent)]
    _replace(CA_BUNDLE.name, content.rstrip() + b"\n", sorted(set(there)))
    for directory in sorted({Path(os.path.realpath(path.parent)) for path in missing}):
        names = {path.name for path in missing if Path(os.path.realpath(path.parent)) == directory}
        work = OWN_DIRECTORY / "copy"
        work.mkdir()
        mounts.replace_with_copy(directory, work, dict.fromkeys(names, CA_BUNDLE))
        work.rmdir()


def _belongs_to_root(directory: Path) -> bool:
    """Nobody else's hands are in it."""
    try:
        found = directory.stat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _replace(name: str, content: bytes, targets: Sequence[Path]) -> None:
    source = OWN_DIRECTORY / name
    source.write_bytes(content)
    source.chmod(_READABLE)
    for target in targets:
        if target.is_relative_to(RUN):  # the fresh tmpfs has it not
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        if target.exists():
            libc.mount(str(source), str(target), None, libc.MS_BIND)
