"""From a reference to the secret it stands for, read with the rights and in the environment of whoever asked.

A variable is read once, a file whenever it has changed, everything else when a request needs it and what was read last
is too old. Must not know what a secret is for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from nono_ebpf.credentials import bitwarden, commands, credstore, files, keyring_store
from nono_ebpf.credentials.reading import Reading, Surroundings, checked, unavailable
from nono_ebpf.credentials.references import (
    FromApplePasswords,
    FromBitwarden,
    FromCommand,
    FromCredentialsDirectory,
    FromEnvironment,
    FromFile,
    FromHostStore,
    FromKeyring,
    FromOnePassword,
    Named,
    Reference,
    parse_readable,
    parse_reference,
    resolved,
    why_unsupported,
)
from nono_ebpf.credentials.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from contextlib import AbstractContextManager

__all__ = ("Reading", "Secret", "Surroundings", "parse_readable", "parse_reference", "read", "read_file")

_PASSWORD_MANAGER_S: Final = 300.0
_KEYRING_S: Final = 60.0
_ONE_TIME_CODE_S: Final = 10.0
_GRACE_S: Final = 5.0  # for a deadline that is kept to be told of


def read(reference: Reference, around: Surroundings, known: Reading | None = None) -> Reading:
    """The secret. `known`, from an earlier call, is returned itself where nothing has changed since.

    Raises:
        CredentialUnavailable: it cannot be had now. Never says what was found.
    """
    match resolved(reference, around.uid):
        case FromEnvironment() as variable:
            return known or Reading(
                from_variable(variable, bytearray(os.fsencode(around.environment.get(variable.name, ""))))
            )
        case FromFile(path) as file:
            return files.read(file, path, around.owner, known, shared_ok=around.shared_ok)
        case FromCredentialsDirectory() as entry:
            return credstore.read_credentials_directory(entry, around, known)
        case FromHostStore() as entry:
            return Reading(credstore.read_host_store(entry, around))
        case FromKeyring() as entry:
            return Reading(keyring_store.read(entry, around.environment))
        case FromOnePassword() as entry:
            return Reading(commands.read_one_password(entry, around.environment))
        case FromBitwarden() as entry:
            return Reading(bitwarden.read(entry, around.environment))
        case FromApplePasswords() | FromCommand() as entry:
            raise unavailable(entry, "unsupported", why_unsupported(entry))
        case Named():  # `resolved` leaves none
            raise AssertionError(reference)


def read_file(reference: FromFile, rights: AbstractContextManager[None], owner: int) -> Secret:
    """What is in a file of `owner` now, read with the account's `rights`. Raises CredentialUnavailable."""
    with rights:
        return read(reference, Surroundings(os.geteuid(), owner, {})).value


def is_lazy(reference: Reference) -> bool:
    """Whether reading it may take long, ask somebody or cost something: it is read when a request needs it."""
    return isinstance(reference, Named | FromHostStore | FromKeyring | FromOnePassword | FromBitwarden)


def lifetime_s(reference: Reference) -> float:
    """How long what was read lazily is taken for what it still is."""
    if isinstance(reference, FromBitwarden) and reference.field == "totp":
        return _ONE_TIME_CODE_S
    return _PASSWORD_MANAGER_S if isinstance(reference, FromOnePassword | FromBitwarden) else _KEYRING_S


def deadline_s(reference: Reference, around: Surroundings) -> float | None:
    """How long a lazy one may take to be read. None: as long as it likes."""
    if not isinstance(resolved(reference, around.uid), FromKeyring):
        return commands.DEADLINE_S + _GRACE_S
    return keyring_store.timeout_s(around.environment)


def needs_set_id(reference: Reference) -> bool:
    """Whether what reads it gains a group by being executed: 1Password's application answers only to such an `op`."""
    return isinstance(reference, FromOnePassword)


def preload(references: Collection[Reference], uid: int) -> None:
    """Import what reading them needs."""
    if any(isinstance(resolved(reference, uid), FromKeyring) for reference in references):
        keyring_store.preload()


def needed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of it sources other than variables are found with."""
    kept = commands.environment_for_programs(environment)
    others = ("CREDENTIALS_DIRECTORY", "NONO_KEYRING_TIMEOUT_SECS", "PYTHON_KEYRING_BACKEND")
    return kept | {name: environment[name] for name in others if name in environment}


def from_variable(reference: FromEnvironment, content: bytearray | None) -> Secret:
    """The secret in `content`, the value of that variable, which is overwritten. Raises CredentialUnavailable."""
    if not content:
        raise unavailable(reference, "missing", "the variable is not set, or empty")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise unavailable(reference, "unreadable", "the variable is not UTF-8") from error
    return checked(reference, content)
