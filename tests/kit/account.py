"""Programs run as the account that is sandboxed, outside and inside a sandbox: the control, and the experiment."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOBODY = pwd.getpwnam("nobody")
PYTHON = "/usr/bin/python3"
PROGRAM = [sys.executable, "-I", "-m", "nono_ebpf"]
RUN = [*PROGRAM, "run", "--user", "nobody"]
AS_NOBODY = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "--"]
OUTSIDE, INSIDE = AS_NOBODY, [*RUN, "--"]
TIMEOUT_S = patient(180)
STARTED = "started"
# Prints for each unix socket of its arguments whether it can be reached.
CONNECT = """
import errno, json, socket, sys
def told(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"
print(json.dumps([told(path) for path in sys.argv[1:]]))
"""


def finish(command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` without a terminal's input, in a directory that everybody may be in."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, text=True, timeout=TIMEOUT_S, check=False, cwd="/", **(streams | more))


def report(where: Sequence[str], script: str, *arguments: str, **more: Any) -> Any:
    """What `script`, run by Python OUTSIDE or INSIDE, printed as JSON."""
    done = finish([*where, PYTHON, "-c", script, *arguments], **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_refused(done: subprocess.CompletedProcess[str], text: str) -> None:
    """A mistake of the caller's: one line that has `text` in it, exit 2, the command not started."""
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert text in done.stderr
    assert STARTED not in (done.stdout or "")


@contextmanager
def directory_of_nobody(parent: str) -> Iterator[Path]:
    """A directory that the sandboxed account owns and everybody may enter."""
    made = Path(tempfile.mkdtemp(prefix="nono-escape-", dir=parent))
    try:
        made.chmod(0o755)
        os.chown(made, NOBODY.pw_uid, NOBODY.pw_gid)
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def place() -> Iterator[Path]:
    """Such a directory, in /tmp itself: pytest's own are closed to the account."""
    with directory_of_nobody("/tmp") as made:
        yield made


@contextmanager
def bystander(*command: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process outside that has said "ready", and that is killed in the end."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd="/", **(pipes | more)) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
            process.wait()


def with_file(source: Path, target: str) -> list[str]:
    """What to put before a command that is to see `source` at `target`."""
    bind = 'mount --bind "$0" "$1"; shift; exec "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-ec", bind, str(source), target]
