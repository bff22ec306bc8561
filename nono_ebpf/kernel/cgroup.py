"""cgroup v2 directories: cgroups(7). Locates the hierarchy, makes, empties and removes our groups in it."""

from __future__ import annotations

import errno
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError, NotSupported
from nono_ebpf.kernel import mounts

if TYPE_CHECKING:
    from pathlib import Path


def hierarchy() -> Path:
    """Where cgroup v2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified on hybrid hosts.

    Raises:
        NotSupported: only cgroup v1 is mounted, which has no place to attach to.
    """
    for mount in mounts.read():
        if mount.kind == "cgroup2":
            return mount.place
    raise NotSupported(
        "no cgroup v2 hierarchy is mounted", errno.ENOENT, hint="boot with systemd.unified_cgroup_hierarchy=1"
    )


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One directory of the hierarchy. Removing it detaches every program that is attached to it."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Cgroup:
        """Make `path` and its parents.

        Raises:
            NotSupported: nothing could end what will run in it.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KernelError(f"create the cgroup {path}", error.errno or 0) from error
        if not (path / "cgroup.kill").exists():
            path.rmdir()
            raise NotSupported("end a cgroup as a whole", errno.ENOSYS, hint="Linux 5.19 or newer is needed")
        return cls(path)

    def join(self) -> None:
        """Move the calling process in; its sockets belong to this group from now on."""
        try:
            (self.path / "cgroup.procs").write_text("0")
        except OSError as error:
            raise KernelError(f"join the cgroup {self.path}", error.errno or 0) from error

    def kill(self, timeout_s: float = 30.0) -> None:
        """SIGKILL every process in it and wait until none is left (kernel 5.14, 661ee6281820)."""
        events = os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            (self.path / "cgroup.kill").write_text("1")
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while b"populated 1" in os.pread(events, 4096, 0):
                if not poll.poll(timeout_s * 1000):
                    raise KernelError(f"empty the cgroup {self.path}", errno.EBUSY)
        finally:
            os.close(events)

    def remove(self) -> None:
        """Kill what is in it and remove it. A group that is gone already is fine."""
        if not self.path.exists():
            return
        self.kill()
        for child in sorted(self.path.glob("**/"), reverse=True):
            child.rmdir()
