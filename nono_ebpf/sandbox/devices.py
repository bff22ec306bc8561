"""The sandbox's /dev and cgroup hierarchies: its own in place of the host's. pts(4), mq_overview(7), cgroups(7)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import libc, mounts

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALWAYS = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# The group of terminals is 5 everywhere (Debian, Fedora, Arch).
_FILE_SYSTEMS = (
    ("devpts", "pts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "shm", "mode=1777"),
    ("mqueue", "mqueue", None),
)
_CGROUP_FLAGS = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


def own_terminal() -> int | None:
    """A handle of the terminal that the command's streams are on, opened in this mount namespace; None without one."""
    for fd in filter(os.isatty, range(3)):
        try:
            return os.open(os.ttyname(fd), os.O_PATH | os.O_CLOEXEC)
        except OSError:  # of another mount namespace, where it has a name that we do not know
            continue
    return None


def replace_devices(work: Path, terminal: int | None, allowed: Mapping[Path, int]) -> None:
    """A /dev with what every program needs and nothing of the host: no other terminal, no virtual keyboard or socket
    device, no file systems of a process's own (who waits for its own answer there can be killed by nobody), queues and
    shared memory of its own. The command's terminal is found as the console, as in containers. `work`: a directory in
    which root alone writes.
    """
    made = work / "dev"
    made.mkdir()
    mounts.fresh(made, "mode=0755")
    for name in _ALWAYS:
        mounts.bind_file(Path("/dev") / name, made / name)
    for name, target in _LINKS.items():
        (made / name).symlink_to(target)
    for kind, name, options in _FILE_SYSTEMS:
        (made / name).mkdir()
        with suppress(KernelError):  # a kernel without queues
            libc.mount(kind, str(made / name), kind, libc.MS_NOSUID | libc.MS_NOEXEC, options)
    for path, handle in allowed.items():
        mounts.bind_handle(handle, made / path.relative_to("/dev"))
    if terminal is not None:
        mounts.bind_handle(terminal, made / "console")
    libc.mount(str(made), "/dev", None, libc.MS_BIND | libc.MS_REC)
    libc.unmount(str(made))
    made.rmdir()


def replace_cgroups(work: Path) -> None:
    """The host's hierarchies have groups of the account's (systemd's for its sessions, containers'), in which it could
    stop and kill. In their place: its own group for version 2, and for version 1 nothing that can be written.
    """
    hierarchies = [mount for mount in mounts.read() if mount.kind in {"cgroup", "cgroup2"}]
    own = work / "cgroup"  # by way of here: one file system is not mounted twice on one place
    own.mkdir()
    libc.mount("cgroup2", str(own), "cgroup2", _CGROUP_FLAGS)
    places = {mount.place: own if mount.kind == "cgroup2" else mount.place for mount in hierarchies}
    for place, source in (places | {own: own}).items():
        libc.mount(str(source), str(place), None, libc.MS_BIND)
        libc.mount(None, str(place), None, libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _CGROUP_FLAGS)
