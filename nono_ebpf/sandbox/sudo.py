"""Started by an ordinary user: start again through sudo, and find that user's surroundings again on the other side.

sudo gives a command a clean environment, and rightly so. The sandboxed command is not root's but the user's, so it gets
the user's: read, as root, from the sudo process above us, whose environment is the one it was started with (proc(5)).
Nothing of it is ever in an argument list, where everybody could read it. sudo(8).
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAG = "--from-sudo"
_ANCESTORS_MAX = 4  # sudo, and its monitor when it uses a pty


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the user's shell would have given the command."""

    environment: dict[str, str]
    umask: int


def start_again(arguments: Sequence[str], *, carry: bool = True) -> NoReturn:
    """Become `sudo nono-ebpf …` with the same arguments; sudo asks for the password. `carry`: our surroundings, too.

    Raises:
        ConfigError: there is no sudo.
    """
    sudo = shutil.which("sudo")
    if sudo is None:
        raise ConfigError("nono-ebpf", "attaching to a cgroup needs root", hint="install sudo, or run it as root")
    umask = os.umask(0)
    os.umask(umask)
    command, *rest = arguments
    carried = [f"{FLAG}={os.getpid()}:{umask:o}"] if carry else []
    again = [sys.executable, "-I", "-m", "nono_ebpf", command, *carried, *rest]
    os.execv(sudo, [sudo, "--", *again])  # noqa: S606  # no shell


def surroundings(claim: str) -> Surroundings:
    """What `claim` (PID:UMASK, from `start_again`) stands for. The pid must be a sudo that we descend from.

    Raises:
        ConfigError: it is not.
    """
    pid, _, umask = claim.partition(":")
    if not (pid.isdigit() and umask.isdigit() and int(pid) in _ancestors() and _is_sudo(int(pid))):
        raise ConfigError(FLAG, "is for nono-ebpf's own use", hint="leave it out")
    entries = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    pairs = [os.fsdecode(entry).split("=", 1) for entry in entries if b"=" in entry]
    return Surroundings(dict(pairs), int(umask, 8))


def _ancestors() -> list[int]:
    found, pid = [], os.getpid()
    for _ in range(_ANCESTORS_MAX):
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid <= 1:
            break
        found.append(pid)
    return found


def _is_sudo(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").readlink().name == "sudo"
