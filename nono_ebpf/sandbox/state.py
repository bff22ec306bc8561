"""What exists of a sandbox outside of its processes, and how a later start finds what a crash left.

Each sandbox holds a lock on /run/nono-ebpf/ID/lock for as long as its supervisor lives; the kernel lets go of it
whatever kills the supervisor. Whoever can take the lock may therefore clean up: kill the cgroups, unpin the links,
remove the rest.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError, SandboxError
from nono_ebpf.kernel import bpffs, cgroup
from nono_ebpf.kernel.cgroup import Cgroup
from nono_ebpf.kernel.loader import remove_pins

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = Path("/run/nono-ebpf")
GROUP = "nono-ebpf"
_NAME_BYTES = 6
_REGISTRY_TIMEOUT_S = 20.0
_NAME = re.compile(f"[0-9a-f]{{{2 * _NAME_BYTES}}}")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox's names. `lock` is held while its supervisor lives."""

    id: str
    lock: int

    @property
    def directory(self) -> Path:
        """Its state directory."""
        return STATE / self.id

    @property
    def pins(self) -> Path:
        """Its links."""
        return bpffs.PINS / self.id

    @property
    def group(self) -> Path:
        """Its cgroups' parent."""
        return cgroup.hierarchy() / GROUP / self.id

    def remove(self) -> None:
        """Nothing of it stays: first what runs, then what steers, then the record of it."""
        Cgroup(self.group).remove()
        remove_pins(self.pins)
        remove_pins(self.pins.with_name(f"{self.id}_new"))
        with _registry():
            shutil.rmtree(self.directory)
        os.close(self.lock)


@contextmanager
def _registry() -> Iterator[None]:
    """Held while a sandbox appears or is judged stale, so that nobody mistakes one half made for one left behind."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    STATE.chmod(0o700)  # whoever may open it may lock it
    fd = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _wait_for_lock(fd)
        yield
    finally:
        os.close(fd)


def _wait_for_lock(fd: int) -> None:
    """flock(2) with a deadline: whoever holds it does so for moments."""
    end = time.monotonic() + _REGISTRY_TIMEOUT_S
    while not _locked(fd):
        if time.monotonic() > end:
            raise SandboxError(f"another process keeps {STATE} locked; `fuser {STATE}` names it")
        time.sleep(0.02)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def create() -> Sandbox:
    """A new one, locked."""
    with _registry():
        name = secrets.token_hex(_NAME_BYTES)
        (STATE / name).mkdir(mode=0o700)
        return Sandbox(name, _lock(STATE / name))


def _lock(directory: Path) -> int:
    """Raises BlockingIOError where somebody holds it."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(fd):
        os.close(fd)
        raise BlockingIOError
    return fd


def remove_stale() -> list[str]:
    """Clean up after supervisors that are gone. What cannot be is left as it is, its connections refused: why, by name.

    A process in the kernel's hands (a file system that does not answer) ends when it is let go of, not before.
    """
    with _registry():
        stale = [sandbox for name in _names() if (sandbox := _abandoned(STATE / name))]
    left = []
    for sandbox in stale:
        try:
            sandbox.remove()
        except (KernelError, OSError) as error:
            os.close(sandbox.lock)
            left.append(f"{sandbox.id}: {error}")
    return left


def _names() -> list[str]:
    """Of every sandbox there is a trace of: /run may have been emptied under a crashed one."""
    traces = (entry.name for place in (STATE, bpffs.PINS, cgroup.hierarchy() / GROUP) for entry in place.glob("*/"))
    return sorted({found[0] for name in traces if (found := _NAME.match(name))})


def _abandoned(directory: Path) -> Sandbox | None:
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        return Sandbox(directory.name, _lock(directory))
    except BlockingIOError:
        return None  # its supervisor is alive
