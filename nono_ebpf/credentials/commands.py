"""Programs that give a secret out, such as 1Password's `op`. Run without shell and terminal, with a deadline.

They run outside the sandbox, so the sandboxed command must not be able to put one there: of PATH, only directories that
nobody but root can write are searched, by us and by the program itself. Of what they say on stderr nothing is shown: it
may hold a secret.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nono_ebpf.credentials.children import die_with_parent
from nono_ebpf.credentials.reading import BUFFER_BYTES, checked, unavailable
from nono_ebpf.credentials.references import FromBitwarden, FromOnePassword
from nono_ebpf.credentials.secret import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nono_ebpf.credentials.references import Reference
    from nono_ebpf.credentials.secret import Secret
    from nono_ebpf.errors import CredentialUnavailable

DEADLINE_S: Final = 30.0
_SAID_MAX: Final = 4096
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
# What these programs find their account, their session and the network by; nothing else of the environment. Other
# variables of bw's change what it writes: BW_RESPONSE puts JSON around a secret, BW_CLEANEXIT calls a failure none.
_NAMES: Final = frozenset(
    ("HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "DBUS_SESSION_BUS_ADDRESS", "SSL_CERT_FILE", "SSL_CERT_DIR",
     "NODE_EXTRA_CA_CERTS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
     "BW_SESSION", "BITWARDENCLI_APPDATA_DIR")
)  # fmt: skip
_PREFIXES: Final = ("OP_", "XDG_", "LC_")
_LOCKED: Final = (
    b"not currently signed in", b"not signed in", b"no account found", b"no accounts configured", b"session expired",
    b"authorization prompt dismissed", b"authorization timeout", b"vault is locked", b"not logged in",
)  # fmt: skip
_MISSING: Final = (b"isn't an item", b"isn't a vault", b"isn't a field", b"does not have a field", b"not found")
# The variable that says where a program keeps its settings, the directory where that is otherwise, a file there.
_SETTINGS: Final = {
    FromOnePassword: ("OP_CONFIG_DIR", "op", "config"),
    FromBitwarden: ("BITWARDENCLI_APPDATA_DIR", "Bitwarden CLI", "data.json"),
}


@dataclass(frozen=True, slots=True)
class Output:
    """How a program ended, what it wrote, and what it said in lower case: to be judged, not to be shown."""

    status: int
    written: memoryview
    said: bytes


def environment_for_programs(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of `environment` that programs are given."""
    kept = {name: text for name, text in environment.items() if name in _NAMES or name.startswith(_PREFIXES)}
    path = ":".join(filter(_is_roots, environment.get("PATH", _PATH).split(":")))
    return kept | _own_directories(environment) | {"PATH": path, "BW_NOINTERACTION": "true"}


def settings_files(reference: FromOnePassword | FromBitwarden, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where its program keeps whom it talks to, and its session; () when that is nowhere."""
    variable, _, file = _SETTINGS[type(reference)]
    directory = _own_directories(environment).get(variable)
    return () if directory is None else (Path(directory, file),)


def _own_directories(environment: Mapping[str, str]) -> dict[str, str]:
    """Named, so that no other is looked for: in its home the sandboxed command could make one that is found before."""
    config = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME') or '~'}/.config"
    found = {variable: environment.get(variable) or f"{config}/{name}" for variable, name, _ in _SETTINGS.values()}
    return {variable: directory for variable, directory in found.items() if directory.startswith("/")}


def read_one_password(reference: FromOnePassword, environment: Mapping[str, str]) -> Secret:
    """Raises CredentialUnavailable."""
    output = run(reference, ("op", "read", "--", reference.uri), environment)
    if output.status:
        raise failure(reference, "op", output, "sign in to 1Password (op signin), or set OP_SERVICE_ACCOUNT_TOKEN")
    return checked(reference, output.written)


def run(
    reference: Reference,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    given: memoryview | None = None,
) -> Output:
    """Run `command` with `given` as its input, and wait for its end, not for that of what it leaves behind.

    Raises:
        CredentialUnavailable: it is not installed, takes too long (its whole group has been killed) or writes too much.
    """
    its = environment_for_programs(environment)
    program = _find(reference, command[0], its["PATH"])
    process = subprocess.Popen(
        [program, *command[1:]],
        stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=its,
        cwd="/",
        start_new_session=True,
        preexec_fn=die_with_parent,  # no threads here
    )
    try:
        return _Collector(reference, command[0], process).collect(given)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def failure(reference: Reference, name: str, output: Output, remedy: str) -> CredentialUnavailable:
    """What became of program `name`, which did not end well. `remedy`: for when it is locked."""
    if any(phrase in output.said for phrase in _LOCKED):
        return unavailable(reference, "locked", f"{name} is locked; {remedy}")
    if any(phrase in output.said for phrase in _MISSING):
        return unavailable(reference, "missing", f"{name} knows no such entry")
    problem = f"{name} failed with status {output.status}; run it yourself to see why"
    return unavailable(reference, "failed", problem)


class _Collector:
    """Takes what one process writes, as much as a secret can be, until it ends or the deadline does."""

    def __init__(self, reference: Reference, name: str, process: subprocess.Popen[bytes]) -> None:
        self._reference, self._name, self._process = reference, name, process
        self._written, self._length, self._said = bytearray(BUFFER_BYTES), 0, b""

    def collect(self, given: memoryview | None) -> Output:
        """Raises CredentialUnavailable."""
        assert self._process.stdout is not None  # noqa: S101  # for the type checker: both are pipes
        assert self._process.stderr is not None  # noqa: S101  # as above
        out, err = self._process.stdout.fileno(), self._process.stderr.fileno()
        for fd in (out, err):
            os.set_blocking(fd, False)
        if given is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):  # its status tells more
                os.write(self._process.stdin.fileno(), given)  # a pipe of its own takes that much at once
            self._process.stdin.close()
        ended = os.pidfd_open(self._process.pid)
        try:
            self._until(ended, out, err)
        finally:
            os.close(ended)
        # What it left running may hold the pipes open: what is there by now is all.
        self._take(out)
        self._take_said(err)
        return Output(self._process.wait(), memoryview(self._written)[: self._length], self._said.lower())

    def _until(self, ended: int, out: int, err: int) -> None:
        poll, end = select.poll(), time.monotonic() + DEADLINE_S
        for fd in (ended, out, err):
            poll.register(fd, select.POLLIN)
        while left := max(0.0, end - time.monotonic()):
            for fd, _ in poll.poll(left * 1000):
                if fd == ended:
                    return
                if not (self._take(out) if fd == out else self._take_said(err)):
                    poll.unregister(fd)
        raise unavailable(self._reference, "timed_out", f"{self._name} gave no answer within {DEADLINE_S:.0f} s")

    def _take(self, fd: int) -> bool:
        """Whether there may be more."""
        try:
            while got := os.readv(fd, [memoryview(self._written)[self._length :]]):
                self._length += got
                if self._length == BUFFER_BYTES:
                    raise unavailable(self._reference, "too_large", f"{self._name} wrote more than {MAX_BYTES} bytes")
        except BlockingIOError:
            return True
        return False

    def _take_said(self, fd: int) -> bool:
        """The same, of stderr; past some length nothing is kept."""
        try:
            while got := os.read(fd, _SAID_MAX):
                self._said += got[: _SAID_MAX - len(self._said)]
        except BlockingIOError:
            return True
        return False


def _find(reference: Reference, name: str, path: str) -> str:
    for directory in filter(None, path.split(":")):
        program = Path(directory, name)
        if os.access(program, os.X_OK) and program.is_file() and _is_roots(str(program)):
            return str(program)
    problem = f"{name} is not installed where only root can write, in a directory of PATH"
    raise unavailable(reference, "no_program", problem)


def _is_roots(path: str) -> bool:
    """Whether nobody but root can change what is executed by this absolute path, at any step of it."""
    if not path.startswith("/"):
        return False
    try:
        return all(map(_only_root_writes, _steps(Path(path))))
    except OSError:
        return False


def _steps(path: Path) -> Iterator[os.stat_result]:
    """Of every directory and link on the way."""
    for place in (path, *path.parents):
        found = place.lstat()
        yield found
        if stat.S_ISLNK(found.st_mode):
            yield from _steps(Path(os.path.normpath(place.parent.resolve() / place.readlink())))


def _only_root_writes(found: os.stat_result) -> bool:
    if found.st_uid != 0:
        return False
    open_to_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # Of what is in a sticky directory everybody changes only the own, and that is looked at by itself.
    return not open_to_others or stat.S_ISLNK(found.st_mode) or bool(found.st_mode & stat.S_ISVTX)
