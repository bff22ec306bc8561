"""What this machine can do, found by trying it. An answer is yes, no, or "could not tell".

Each probe makes the real thing (a program, an attachment, a namespace) in a child or a cgroup of its own and lets go.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import secrets
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError, LoadError, NonoError
from nono_ebpf.kernel import bpffs, cgroup, libc, loader
from nono_ebpf.kernel.hooks import HOOKS, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class State(StrEnum):
    """The three answers."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "could not tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One probe's answer. `enforces`: what a sandbox has of it. `remedy`: what to do about a no; empty for a yes.

    `needed`: no sandbox starts without it; else one starts that lacks what it enforces.
    """

    name: str
    state: State
    detail: str
    enforces: str
    remedy: str = ""
    needed: bool = True


@dataclass(frozen=True, slots=True)
class _Probe:
    name: str
    enforces: str
    remedy: str
    ask: Callable[[], str]  # the detail of a yes; raises for the rest

    def __call__(self) -> Finding:
        try:
            return Finding(self.name, State.YES, self.ask(), self.enforces)
        except NonoError as error:
            state = State.UNKNOWN if _is_permission(error) else State.NO
            remedy = "run it as root to know" if state is State.UNKNOWN else self.remedy
            return Finding(self.name, state, str(error), self.enforces, remedy)
        except OSError as error:
            return Finding(self.name, State.UNKNOWN, str(error), self.enforces, "run it as root to know")


def _is_permission(error: NonoError) -> bool:
    return os.geteuid() != 0 and isinstance(error, KernelError) and error.errno in (errno.EPERM, errno.EACCES)


def findings() -> Iterator[Finding]:
    """Every probe's answer, as it is found."""
    for probe in _PROBES:
        yield probe()


def _kernel() -> str:
    return os.uname().release


def _cgroup_v2() -> str:
    path = cgroup.hierarchy()
    if not any(path.glob("*/cgroup.kill")) and not (path / "cgroup.procs").exists():
        raise KernelError(f"use {path}", errno.ENOENT)
    return str(path)


def _bcc() -> str:
    if not loader.bcc_is_installed():
        raise KernelError("import bcc", errno.ENOENT, hint="PyPI's package of that name is something else")
    return "found"


def _headers() -> str:
    if not Path("/usr/include/linux/bpf.h").exists():
        raise KernelError("read /usr/include/linux/bpf.h", errno.ENOENT)
    return "/usr/include"


def _bpffs() -> str:
    if bpffs.is_mounted():
        return f"mounted on {bpffs.MOUNT_POINT}"
    if not any(line.split()[-1] == "bpf" for line in Path("/proc/filesystems").read_text().splitlines()):
        raise KernelError("find the file system type bpf", errno.ENODEV)
    return f"will be mounted on {bpffs.MOUNT_POINT}"


def _hooks() -> str:
    bpffs.ensure()
    with _scratch_groups() as groups:
        pins = bpffs.PINS / f"probe_{secrets.token_hex(4)}"
        try:
            with loader.Loader() as load:
                load.attach(groups, pins).close()
        except LoadError as error:
            lines = [line for line in error.log.splitlines() if line.strip()]
            raise LoadError(f"{error}: {lines[-1]}" if lines else str(error), error.log) from error
        finally:
            loader.remove_pins(pins)
    return f"{len(HOOKS)} of {len(HOOKS)} load and attach"


@contextmanager
def _scratch_groups() -> Iterator[dict[Side, Path]]:
    top = cgroup.Cgroup.create(cgroup.hierarchy() / f"nono-ebpf-probe-{secrets.token_hex(4)}")
    try:
        yield {side: cgroup.Cgroup.create(top.path / side).path for side in Side}
    finally:
        top.remove()


def _namespaces() -> str:
    wanted = libc.CLONE_NEWNET | libc.CLONE_NEWNS | libc.CLONE_NEWPID | libc.CLONE_NEWIPC | libc.CLONE_NEWCGROUP
    wanted |= libc.CLONE_NEWUSER
    pid = os.fork()
    if pid == 0:
        try:
            libc.unshare(wanted)
            os._exit(0)
        except KernelError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise KernelError("make network, mount, pid, IPC, cgroup and user namespaces", code)
    return "network, mount, pid, IPC, cgroup, user"


def _seccomp() -> str:
    if importlib.util.find_spec("seccomp") is None:
        raise KernelError("import seccomp", errno.ENOENT)
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "errno" not in actions.read_text().split():
        raise KernelError("use seccomp filters", errno.ENOSYS, hint="the kernel lacks CONFIG_SECCOMP_FILTER")
    return "filters, libseccomp's binding"


def _ipv6() -> str:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM):
        return "available"


_PROBES = (
    _Probe("kernel", "", "", _kernel),
    _Probe("cgroup v2", "a place to attach to", "boot with systemd.unified_cgroup_hierarchy=1", _cgroup_v2),
    _Probe("bcc", "compiles the programs", "apt install python3-bpfcc; then `make setup`", _bcc),
    _Probe("UAPI headers", "compile without kernel headers", "apt install linux-libc-dev", _headers),
    _Probe("BPF file system", "hooks outlive a crash", "a kernel with CONFIG_BPF_SYSCALL", _bpffs),
    _Probe(
        "eBPF hooks",
        "every TCP connect is redirected, other sockets are refused",
        "Linux 5.19 or newer",
        _hooks,
    ),
    _Probe(
        "namespaces",
        "nothing but loopback, no host processes, no host daemons",
        "a kernel with CONFIG_*_NS",
        _namespaces,
    ),
    _Probe(
        "seccomp",
        "other socket families, io_uring, terminal injection refused",
        "apt install python3-seccomp",
        _seccomp,
    ),
    _Probe("IPv6", "listeners for IPv6 destinations", "boot without ipv6.disable=1", _ipv6),
)
