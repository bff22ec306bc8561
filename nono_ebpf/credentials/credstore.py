"""What systemd keeps: the host's encrypted store, which is root's, and the directory of a service's credentials.

An entry of ours in the store is `nono.NAME`, so that no other one can be asked for. systemd-creds(1), systemd.exec(5).
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nono_ebpf.credentials import commands, files
from nono_ebpf.credentials.reading import Reading, Surroundings, checked, unavailable
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    from nono_ebpf.credentials.references import FromCredentialsDirectory, FromHostStore
    from nono_ebpf.credentials.secret import Secret

STORE: Final = Path("/etc/credstore.encrypted")
_PREFIX: Final = "nono."


def place(name: str) -> Path:
    """Where the entry `name` is kept, encrypted."""
    return STORE / f"{_PREFIX}{name}"


def read_host_store(reference: FromHostStore, around: Surroundings) -> Secret:
    """Raises CredentialUnavailable."""
    path = place(reference.name)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError as error:
        problem = f"the host's store has none; `nono-ebpf credential set {reference.name}`, as root"
        raise unavailable(reference, "missing", problem) from error
    except PermissionError as error:
        raise unavailable(reference, "unreadable", "the host's store is root's alone") from error
    except OSError as error:
        raise unavailable(reference, "unreadable", f"it cannot be read: {error.strerror}") from error
    command = ("systemd-creds", f"--name={path.name}", "decrypt", str(path), "-")
    output = commands.run(reference, command, around.environment)
    if output.status:
        problem = f"systemd-creds cannot decrypt {path} with this host's key"
        raise unavailable(reference, "failed", problem)
    return checked(reference, output.written)


def write_host_store(reference: FromHostStore, secret: Secret, around: Surroundings) -> None:
    """Encrypt it with this host's key (and its TPM, where it has one), in place of what was there.

    Raises:
        CredentialUnavailable: that failed.
    """
    path = place(reference.name)
    command = ("systemd-creds", f"--name={path.name}", "encrypt", "-", "-")
    with secret.lent() as given:
        output = commands.run(reference, command, around.environment, given=given)
    if output.status:
        raise unavailable(reference, "failed", f"systemd-creds cannot encrypt it (status {output.status})")
    try:
        STORE.mkdir(mode=0o700, exist_ok=True)
        _replace(path, output.written)
    except OSError as error:
        raise unavailable(reference, "failed", f"{STORE} cannot be written: {error.strerror}") from error


def names() -> list[str]:
    """Of our entries in the host's store."""
    return sorted(path.name.removeprefix(_PREFIX) for path in STORE.glob(f"{_PREFIX}*"))


def read_credentials_directory(
    reference: FromCredentialsDirectory, around: Surroundings, known: Reading | None
) -> Reading:
    """Raises CredentialUnavailable."""
    directory = around.environment.get("CREDENTIALS_DIRECTORY", "")
    if not directory.startswith("/"):
        raise unavailable(reference, "missing", "CREDENTIALS_DIRECTORY is not set: no service of systemd started this")
    try:
        # Its mode has others in it where systemd gave the service's account an entry in the access list.
        return files.read(reference, f"{directory}/{reference.name}", around.owner, known, shared_ok=True)
    except CredentialUnavailable as error:
        if error.state == "missing":
            raise unavailable(reference, "missing", "systemd gave the service no such credential") from error
        raise


def _replace(path: Path, content: memoryview) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
