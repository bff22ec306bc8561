"""What every step of building and running guests needs of the host: paths, commands, packages, lines for people."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "build" / "vm"
_speaking = threading.Lock()


class Failed(Exception):
    """One line for people: what happened, why, what to do."""


def say(text: str) -> None:
    """A line on stdout, whole, whoever else is speaking."""
    with _speaking:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@contextmanager
def step(what: str) -> Iterator[None]:
    """Something that takes a while: when it has been done, a line with its time."""
    begun = time.monotonic()
    yield
    say(f"{time.monotonic() - begun:6.1f} s  {what}")


def run(command: Sequence[str | Path], **more: object) -> str:
    """Run `command` and return what it printed. Raises Failed with the end of its output."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    done = subprocess.run(list(map(str, command)), text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode == 0:
        return str(done.stdout)
    tail = "\n".join(f"{done.stdout or ''}{done.stderr or ''}".splitlines()[-20:])
    raise Failed(f"{' '.join(map(str, command[:3]))} … ended with status {done.returncode}:\n{tail}")


def stream(label: str, command: Sequence[str | Path], **more: object) -> int:
    """Run `command`, show its output line by line with `label` before it, and return its status."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | more
    with subprocess.Popen(list(map(str, command)), text=True, errors="replace", **pipes) as process:  # type: ignore[call-overload]
        for line in process.stdout:
            say(f"{label} | {line.rstrip()}")
    return int(process.returncode)


def words(name: str) -> list[str]:
    """The words of a list in this directory."""
    return (HERE / name).read_text().split()


def install(packages: Sequence[str]) -> None:
    """Install what is missing of `packages` with apt."""
    known = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    present = {line.split()[0] for line in known if line.endswith("ok installed")}
    absent = [package for package in packages if package not in present]
    if not absent:
        return
    with step(f"apt: {' '.join(absent)}"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "-q", "update"])
        run(["apt-get", "-q", "install", "-y", "--no-install-recommends", *absent], env=environment)


def mirror() -> str:
    """The Debian archive that this machine's apt is configured with."""
    targets = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    found = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *targets]).split()
    if not found:
        raise Failed("apt knows no Debian archive: the guests are Debian's; add one to /etc/apt and run apt-get update")
    return found[0]


def digest(*parts: str | Path) -> str:
    """A short fingerprint of texts and of files' contents."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update((part.read_bytes() if isinstance(part, Path) else part.encode()) + b"\0")
    return whole.hexdigest()[:16]


def is_current(made: Path, fingerprint: str) -> bool:
    """Whether `made` was made from inputs with that fingerprint (`remember`)."""
    stamp = _stamp(made)
    return made.exists() and stamp.exists() and stamp.read_text() == fingerprint


def remember(made: Path, fingerprint: str) -> None:
    """Say so: `made` is complete."""
    _stamp(made).write_text(fingerprint)


def _stamp(made: Path) -> Path:
    return made.with_name(f"{made.name}.inputs")
