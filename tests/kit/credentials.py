"""Credentials of a test: where they are kept, the profile that names them, and the search for them in a sandbox.

`find_secrets` looks, as root and from outside, into everything that the processes of a cgroup have or can read: their
environments, arguments, memory and open files, and every file that was written since a given time where the account
may write. It knows a secret also in base64, percent-encoded, in hex, as JSON and in UTF-16.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from kit import search_files
from kit.account import NOBODY, TIMEOUT_S
from kit.sandboxes import name_of
from kit.search_files import contained

from nono_ebpf.kernel import cgroup
from nono_ebpf.sandbox import state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Forms = dict[str, bytes]
CHUNK_BYTES = 1 << 22
# Pages of the kernel's own, which no process writes.
_NOT_MEMORY = ("[vvar]", "[vvar_vclock]", "[vsyscall]", "[vdso]")
_CLOCK_SLACK_NS = 1_000_000_000  # a file's times are those of the last tick


def new_secret(label: str) -> str:
    """A value that nothing else has, with characters that each encoding writes in a way of its own."""
    return f"kit-{label}-{os.urandom(20).hex()}+/=~{os.urandom(4).hex()}"


class Vault:
    """Files that hold credentials, in a directory that everybody may enter, and a profile that names them."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        directory.chmod(0o755)
        self._directory = directory

    def path(self, name: str) -> Path:
        """Where the credential `name` is, or is to be."""
        return self._directory / name

    def reference(self, name: str) -> str:
        """As a profile writes it."""
        return f"file://{self.path(name)}"

    def keep(self, name: str, value: str, *, owner: int = 0) -> None:
        """Put `value` into its file in one step, as rotations do: whoever reads has the old value or the new one."""
        new = self._directory / f".{name}.new"
        new.touch(0o600)
        new.write_text(f"{value}\n")
        os.chown(new, owner, -1)
        new.rename(self.path(name))

    def profile(self, credentials: Mapping[str, Mapping[str, Any]], **network: Any) -> Path:
        """A profile with these `custom_credentials`, all in use."""
        path = self._directory / "profile.json"
        path.write_text(
            json.dumps({"network": {"credentials": list(credentials), "custom_credentials": credentials, **network}})
        )
        return path


# ---------------------------------------------------------------- the search


def forms(secret: bytes) -> Forms:
    """What to look for: `secret` in each of its spellings, by name."""
    escaped = "".join(f"%{byte:02X}" for byte in secret).encode()
    found = {
        "literal": secret,
        "percent": quote_from_bytes(secret, safe="").encode(),
        "percent, every byte": escaped,
        "percent, every byte, lower case": escaped.lower(),
        "hex": secret.hex().encode(),
        "hex, capitals": secret.hex().upper().encode(),
        "JSON": json.dumps(secret.decode())[1:-1].encode(),
        "UTF-16": secret.decode().encode("utf-16-le"),
    }
    for shift in range(3):
        found |= _base64(secret, shift)
    return {name: form for name, form in found.items() if name == "literal" or form != secret}


def _base64(secret: bytes, shift: int) -> Forms:
    """The characters of base64 text that `secret` alone decides, where `shift` bytes of a group stand before it."""
    first, last = (0, 2, 3)[shift], (shift + len(secret)) * 8 // 6
    padded = b"\0" * shift + secret
    return {
        f"base64 +{shift}": base64.b64encode(padded)[first:last],
        f"base64url +{shift}": base64.urlsafe_b64encode(padded)[first:last],
    }


def spelled(data: bytes, secret: str) -> list[str]:
    """The names of the forms in which `data` has `secret`."""
    return contained(data, forms(secret.encode()))


def cgroup_of(supervisor: int) -> Path:
    """The cgroup of the sandbox that a supervisor runs."""
    return cgroup.hierarchy() / state.GROUP / name_of(supervisor) / "sandbox"


def find_secrets(group: Path, secrets: Mapping[str, str], since_ns: int) -> dict[str, list[str]]:
    """For each of `secrets`, by name, where the processes of cgroup `group` and those below it have it, or can read it.

    Each place is "where: form". `since_ns` is a time of day: files that were last written before are not looked at.
    """
    # A form's name in the search has its secret's in front.
    every = {f"{name}\t{form}": data for name, value in secrets.items() for form, data in forms(value.encode()).items()}
    pids = _pids(group)
    assert pids, f"nobody is left in {group}"
    places = [place for pid in pids for place in _in_process(pid, every)]
    found: dict[str, list[str]] = {name: [] for name in secrets}
    for where, which in places + _in_files(pids[0], every, since_ns - _CLOCK_SLACK_NS):
        name, _, form = which.partition("\t")
        found[name].append(f"{where}: {form}")
    return found


def _pids(group: Path) -> list[int]:
    return sorted(int(pid) for procs in group.rglob("cgroup.procs") for pid in procs.read_text().split())


def _in_process(pid: int, wanted: Forms) -> Iterator[tuple[str, str]]:
    process = Path(f"/proc/{pid}")
    with suppress(FileNotFoundError, ProcessLookupError):
        who = f"{pid} {(process / 'comm').read_text().strip()}"
        for name in ("environ", "cmdline"):
            for form in contained((process / name).read_bytes(), wanted):
                yield f"{who} {name}", form
        for place, data in _memory(process):
            for form in contained(data, wanted):
                yield f"{who} memory {place}", form
        for fd, data in _open_files(process):
            for form in contained(data, wanted):
                yield f"{who} open file {fd}", form


def _memory(process: Path) -> Iterator[tuple[str, bytes]]:
    """Every page that the process may have written: what it maps of a file and cannot write is the file's."""
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            span, permissions, _, _, inode, *name = line.split(maxsplit=5)
            if permissions[0] != "r" or (name and name[0] in _NOT_MEMORY) or (inode != "0" and permissions[1] != "w"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            with suppress(OSError):  # a page that is gone, or a device's
                for data in _chunks(memory.fileno(), start, end):
                    yield f"{span} {''.join(name)}".strip(), data


def _chunks(fd: int, start: int, end: int) -> Iterator[bytes]:
    """What is between the offsets, in pieces that overlap, so that nothing is cut in two."""
    while start < end:
        data = os.pread(fd, min(CHUNK_BYTES, end - start), start)
        if not data:
            return
        yield data
        start += max(len(data) - search_files.OVERLAP_BYTES, 1) if start + len(data) < end else len(data)


def _open_files(process: Path) -> Iterator[tuple[str, bytes]]:
    """Those that may have no name: a memfd, one that was removed."""
    for fd in (process / "fd").iterdir():
        with suppress(OSError):
            if stat.S_ISREG(fd.stat().st_mode):
                yield fd.name, fd.read_bytes()


def _in_files(pid: int, wanted: Forms, since_ns: int) -> list[tuple[str, str]]:
    """In what the account can read, in the file system as the process `pid` sees it."""
    arguments = [str(number) for number in (pid, NOBODY.pw_uid, NOBODY.pw_gid, since_ns)]
    done = subprocess.run(
        [sys.executable, "-I", search_files.__file__, *arguments],
        input=json.dumps({name: form.hex() for name, form in wanted.items()}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(path, form) for path, form in json.loads(done.stdout)]


def of_ours(supervisor: int, secrets: Sequence[str]) -> list[str]:
    """Where a process of nono-ebpf's own has one of `secrets` for all to list: in its arguments or its environment."""
    children, found = [], []
    for thread in Path(f"/proc/{supervisor}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            children += (thread / "children").read_text().split()
    for process in (Path(f"/proc/{pid}") for pid in [supervisor, *children]):
        with suppress(FileNotFoundError, ProcessLookupError):
            shown = {place: place.read_bytes() for place in (process / "cmdline", process / "environ")}
            found += [str(place) for place, data in shown.items() for each in secrets if spelled(data, each)]
    return found
