"""A reference to a secret, and the secret it stands for: `env://NAME`, `file:///absolute/path`.

A profile names secrets, it never holds them. They are looked up once, before anything is started, with the account's
own rights and in its own environment. Must not know what a secret is for.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

_NAME = re.compile(r"[A-Za-z0-9_]+")
# What changes how programs run is no place for a secret, and reading it would be somebody's mistake.
_NO_SECRETS: Final = frozenset(
    ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "DYLD_LIBRARY_PATH", "DYLD_FRAMEWORK_PATH",
     "BASH_ENV", "ENV", "IFS", "CDPATH", "PROMPT_COMMAND", "NODE_OPTIONS", "NODE_PATH", "PYTHONSTARTUP", "PYTHONPATH",
     "PERL5OPT", "PERL5LIB", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "DOTNET_STARTUP_HOOKS",
     "GOFLAGS", "PATH", "HOME", "SHELL")
)  # fmt: skip
_UNSAFE_IN_PATH = re.compile(r"[\0\n\r;|$&><`]")
_MAX_BYTES: Final = 65536
_KINDS: Final = "write env://NAME or file:///absolute/path"
_OTHERS: Final = ("op://", "bw://", "apple-password://", "apple-passwords://", "keyring://", "cmd://")


class Secret:
    """Bytes that have no text form."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """A variable of the account's environment. The command is not to have it: `name` is to be taken out."""

    name: str


@dataclass(frozen=True, slots=True)
class FromFile:
    """A file that only the account, or root, can read."""

    path: str


Reference = FromEnvironment | FromFile


def parse_reference(text: str, where: str) -> Reference:
    """Raises ConfigError, whose `where` is `where`: no such kind of source, or not a safe name."""
    if text.startswith("env://"):
        return FromEnvironment(_variable(text.removeprefix("env://"), where))
    if text.startswith("file://"):
        return FromFile(_path(text.removeprefix("file://"), where))
    if text.startswith(_OTHERS) or _NAME.fullmatch(text):
        kind = text.partition("://")[0] + "://" if "://" in text else "the keyring"
        raise ConfigError(where, f"secrets cannot be taken from {kind} yet", hint=_KINDS)
    # What it is, is not repeated: it may be the secret itself.
    raise ConfigError(where, "it is no reference to a secret", hint=_KINDS)


def load(
    reference: Reference, environment: Mapping[str, str], rights: AbstractContextManager[None], where: str
) -> Secret:
    """What `reference` stands for, read from `environment`, or from a file with the account's `rights`.

    Raises:
        ConfigError: there is none, it is empty, or the file is open to others. Never says what it found.
    """
    match reference:
        case FromEnvironment(name):
            value = os.fsencode(environment.get(name, ""))
            if not value:
                raise ConfigError(where, f"the variable {name} is not set, or empty")
            return Secret(value)
        case FromFile(path):
            with rights:
                return Secret(_content(path, where))


def _variable(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(where, "the name of a variable has letters, digits and _ only")
    if name.upper() in _NO_SECRETS:
        raise ConfigError(where, f"{name} changes how programs run: keep the secret in another variable")
    return name


def _path(path: str, where: str) -> str:
    if not path.startswith("/") or path == "/" or ".." in Path(path).parts or _UNSAFE_IN_PATH.search(path):
        raise ConfigError(where, "the path of a secret is absolute and plain", hint="as in file:///run/secrets/proxy")
    return path


def _content(path: str, where: str) -> bytes:
    try:
        # Of a pipe nobody writes to, the end is read at once.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            _check_private(os.fstat(file.fileno()), path, where)
            value = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(where, f"{path}: {error.strerror}") from error
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value or len(value) > _MAX_BYTES:
        raise ConfigError(where, f"{path} is empty, or larger than a secret can be")
    return value


def _check_private(found: os.stat_result, path: str, where: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(where, f"{path} is not a file")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(where, f"{path} is open to other accounts", hint=f"chmod 600 {path}")
