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
# What sudo(8) tells about its caller, and a command that root starts for itself is not to find.
VARIABLES = frozenset(("SUDO_COMMAND", "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_HOME"))


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
    """What `claim` (PID:UMASK, from `start_again`) stands for. The pid must be of the sudo that started us, whose
    argument list has this claim: with one further up, a user could ask for the environment of whoever called it.

    Raises:
        ConfigError: it is not.
    """
    pid, _, umask = claim.partition(":")
    if not (pid.isdigit() and umask.isdigit() and int(pid) in _our_sudo() and _says(int(pid), claim)):
        refuse_claim()
    entries = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    pairs = [os.fsdecode(entry).split("=", 1) for entry in entries if b"=" in entry]
    return Surroundings(dict(pairs), int(umask, 8))


def refuse_claim() -> NoReturn:
    """Somebody else than `start_again` wrote it."""
    raise ConfigError(FLAG, "is for nono-ebpf's own use", hint="leave it out")


def invoking_uid() -> int:
    """Of the ordinary user who called sudo; 0 when root did, or nobody."""
    uid = os.environ.get("SUDO_UID", "")
    return int(uid) if uid.isascii() and uid.isdigit() else 0


def _our_sudo() -> list[int]:
    """The unbroken run of sudo processes above us: sudo, and its monitor where it uses a pty."""
    found, pid = [], os.getppid()
    while _is_sudo(pid):
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def _says(pid: int, claim: str) -> bool:
    return f"{FLAG}={claim}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def _is_sudo(pid: int) -> bool:
    sudo = shutil.which("sudo")
    try:
        return sudo is not None and Path(f"/proc/{pid}/exe").samefile(sudo)
    except OSError:  # a kernel thread, or gone
        return False
