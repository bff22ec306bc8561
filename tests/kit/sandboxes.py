"""A running sandbox seen from outside: its processes and everything the machine keeps for it, found through /proc.

The supervisor's process id is all that is needed: it holds the sandbox's lock open, whose path has the sandbox's name.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kit.patience import patient

from nono_ebpf.kernel import bpffs, cgroup
from nono_ebpf.sandbox import state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_S = patient(90)
_SAME_LOOKS = 50
Seen = TypeVar("Seen")


class Victim:
    """One process, held by a pidfd: a signal cannot hit whoever got its number later. pidfd_open(2)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send `signum`; a process that is gone already is fine."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signum)

    def ended(self, timeout_s: float = PATIENCE_S) -> bool:
        """Whether it ends within `timeout_s`."""
        return bool(select.select([self._fd], [], [], timeout_s)[0])

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One running sandbox, as it was when it was looked at."""

    name: str
    supervisor: Victim
    proxy: Victim
    inside: tuple[Victim, ...]  # pid 1 and all below
    netns: int  # a descriptor of its network namespace: while that is held, its inode's number is nobody else's

    @classmethod
    def of(cls, supervisor: int) -> Sandbox:
        """The sandbox of a supervisor whose command runs."""
        name = name_of(supervisor)
        group = cgroup.hierarchy() / state.GROUP / name
        (proxy,) = _members(group / "proxy")
        members = _members(group / "sandbox")
        netns = os.open(f"/proc/{members[0]}/ns/net", os.O_RDONLY)
        return cls(name, Victim(supervisor), Victim(proxy), tuple(_held(members)), netns)

    @property
    def pins(self) -> Path:
        """Where its links are pinned."""
        return bpffs.PINS / self.name

    def processes(self) -> list[Victim]:
        """All of them."""
        return [self.supervisor, self.proxy, *self.inside]

    def close(self) -> None:
        """Let go of its processes and its network namespace."""
        for each in self.processes():
            each.close()
        os.close(self.netns)

    def traces(self) -> list[Path]:
        """What the machine still has of it: state directory, pins, cgroups, users of its network namespace."""
        group = cgroup.hierarchy() / state.GROUP / self.name
        places = [state.STATE / self.name, self.pins, bpffs.PINS / f"{self.name}_new", group]
        return [place for place in places if place.exists()] + netns_users(self.netns)


def _held(pids: list[int]) -> Iterator[Victim]:
    """Those of them that have not ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            yield Victim(pid)


def _members(group: Path) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


def name_of(supervisor: int) -> str:
    """The name of the sandbox whose lock that process holds. Raises StopIteration where it holds none."""
    paths = [Path(target) for target in _open_files(Path(f"/proc/{supervisor}"))]
    return next(path.parent.name for path in paths if path.name == "lock" and path.is_relative_to(state.STATE))


def _open_files(process: Path) -> list[str]:
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for fd in (process / "fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(str(fd.readlink()))
    return found


def open_files(pid: int) -> list[str]:
    """What each descriptor of a process is, as /proc/PID/fd has it."""
    return _open_files(Path(f"/proc/{pid}"))


def netns_users(netns: int) -> list[Path]:
    """Processes that are in a network namespace or hold a descriptor of it, besides this one, which has `netns`.

    In a container, some processes may be closed even to root: they are none of ours.
    """
    users, inode = [], os.fstat(netns).st_ino
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if (process / "ns/net").stat().st_ino == inode or f"net:[{inode}]" in _open_files(process):
                users.append(process)
    return users


def abandoned() -> set[Path]:
    """State, pins and cgroups of every sandbox whose supervisor is gone: not of one that begins or ends just now."""
    places = (state.STATE, bpffs.PINS, cgroup.hierarchy() / state.GROUP)
    with state._registry():
        traces = [entry for place in places for entry in place.glob("*/")]
        return {each for each in traces if (named := state._NAME.match(each.name)) and not _is_alive(named[0])}


def _is_alive(name: str) -> bool:
    try:
        with (state.STATE / name / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def settled(look: Callable[[], Seen]) -> Seen:
    """What `look` sees once it has seen the same for half a second."""
    last, same = look(), 0
    while same < _SAME_LOOKS:
        time.sleep(0.01)
        now = look()
        last, same = now, same + 1 if now == last else 0
    return last


def eventually(holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
    """Whether `holds` comes true within `timeout_s`: for what the kernel does behind a process that has ended."""
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
