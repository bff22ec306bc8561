"""A reference to a secret: where it is kept, never the secret itself.

`env://NAME`, `file:///absolute/path`, the name of an account in the keyring, a password manager's entry. Knows which
spellings are sound and which could smuggle something into a command line; must not know what a secret is for. What is
no reference is not repeated in an error: it may be the secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"[A-Za-z0-9_]+")
_ENTRY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,199}")
# What changes how programs run is no place for a secret, and reading it would be somebody's mistake.
_NO_SECRETS: Final = frozenset(
    ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "DYLD_LIBRARY_PATH", "DYLD_FRAMEWORK_PATH",
     "BASH_ENV", "ENV", "IFS", "CDPATH", "PROMPT_COMMAND", "NODE_OPTIONS", "NODE_PATH", "PYTHONSTARTUP", "PYTHONPATH",
     "PERL5OPT", "PERL5LIB", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "DOTNET_STARTUP_HOOKS",
     "GOFLAGS", "PATH", "HOME", "SHELL")
)  # fmt: skip
_UNSAFE_IN_PATH = re.compile(r"[\0\n\r;|$&><`]")
_SHELL = frozenset(";|&$`(){}<>!\\\"'\n\r\0")
_MAX_LENGTH: Final = 1024
_SERVICE: Final = "nono"  # in the keyring, as nono has it
_DECODE: Final = "decode=go-keyring"
_EXPECTED: Final = (
    "write a NAME of letters, digits and _ that `nono-ebpf credential set` keeps (any other: keyring://nono/NAME), "
    "env://NAME, file:///path, keyring://service/account, op://vault/item/field, bw://item/field, systemd-creds://NAME "
    "or credentials-directory://NAME"
)
_READABLE: Final = "write env://NAME or file:///absolute/path"


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """A variable of the account's environment. The command is not to have it: `name` is to be taken out."""

    name: str


@dataclass(frozen=True, slots=True)
class FromFile:
    """A file that only the account, or root, can read."""

    path: str


@dataclass(frozen=True, slots=True)
class Named:
    """An account of the service `nono` in the keyring; for root, which has none, an entry of the host's store."""

    name: str


@dataclass(frozen=True, slots=True)
class FromKeyring:
    """An entry of the account's keyring. `decode`: it was written by go-keyring, in base64."""

    service: str
    account: str
    decode: bool = False


@dataclass(frozen=True, slots=True)
class FromHostStore:
    """An entry of the host's encrypted store. systemd-creds(1)."""

    name: str


@dataclass(frozen=True, slots=True)
class FromCredentialsDirectory:
    """What systemd handed a service with LoadCredential=. systemd.exec(5)."""

    name: str


@dataclass(frozen=True, slots=True)
class FromOnePassword:
    """A field of 1Password, by its whole URI."""

    uri: str


@dataclass(frozen=True, slots=True)
class FromBitwarden:
    """A field of a Bitwarden item."""

    item: str
    field: str


@dataclass(frozen=True, slots=True)
class FromApplePasswords:
    """macOS only."""

    server: str
    account: str


@dataclass(frozen=True, slots=True)
class FromCommand:
    """An entry of `credential_capture`."""

    name: str


Readable = FromEnvironment | FromFile
Reference = (
    Readable
    | Named
    | FromKeyring
    | FromHostStore
    | FromCredentialsDirectory
    | FromOnePassword
    | FromBitwarden
    | FromApplePasswords
    | FromCommand
)


def parse_reference(text: str, where: str) -> Reference:
    """Raises ConfigError, whose `where` is `where`: no such kind of source, or not a safe name."""
    scheme, separator, rest = text.partition("://")
    if separator and (parse := _SCHEMES.get(scheme)):
        return parse(rest, where)
    if not _NAME.fullmatch(text):
        raise ConfigError(where, "it names no place where a secret is kept", hint=_EXPECTED)
    return Named(text)


def parse_readable(text: str, where: str) -> Readable:
    """The same, of the kinds that are read before anything is started."""
    if not text.startswith(("env://", "file://")):
        raise ConfigError(where, "it is neither a variable nor a file", hint=_READABLE)
    reference = parse_reference(text, where)
    assert isinstance(reference, Readable)  # noqa: S101  # for the type checker
    return reference


def redacted(reference: Reference) -> str:
    """For messages: which source, but not the part that says what is in it. Names of variables and of our own entries
    are whole: their owner has to be told what to set.
    """
    match reference:
        case FromEnvironment(name):
            return f"env://{name}"
        case FromFile(path):
            return f"file://{Path(path).parent.as_posix().rstrip('/')}/[REDACTED]"
        case Named(name):
            return name
        case FromKeyring(service, account):
            return f"keyring://{service}/{account if service == _SERVICE else '<redacted>'}"
        case FromHostStore(name):
            return f"systemd-creds://{name}"
        case FromCredentialsDirectory(name):
            return f"credentials-directory://{name}"
        case FromOnePassword(uri):
            return f"{'/'.join(uri.split('/')[:4])}/<redacted>"
        case FromBitwarden(_, field):
            return f"bw://<redacted>/{field}"
        case FromApplePasswords(server, _):
            return f"apple-password://{server}/<redacted>"
        case FromCommand(name):
            return f"cmd://{name}"


def why_unsupported(reference: Reference) -> str:
    """Why it can never be read here; empty when it can."""
    match reference:
        case FromApplePasswords():
            return "Apple's passwords are on macOS only; use the keyring or a file"
        case FromCommand():
            return "cmd:// is not supported yet"
        case _:
            return ""


def resolved(reference: Reference, uid: int) -> Reference:
    """What a name stands for with the rights of `uid`, and what of our own is in the keyring: decided by whose they
    are, never by what fails. Root has no keyring.
    """
    match reference:
        case Named(name):
            return FromHostStore(name) if uid == 0 else FromKeyring(_SERVICE, name)
        case FromKeyring(service, account, False) if (
            uid == 0 and service == _SERVICE and _ENTRY_NAME.fullmatch(account)
        ):
            return FromHostStore(account)
        case _:
            return reference


def _variable(name: str, where: str) -> FromEnvironment:
    if not _NAME.fullmatch(name):
        raise ConfigError(where, "the name of a variable has letters, digits and _ only")
    if name.upper() in _NO_SECRETS:
        raise ConfigError(where, f"{name} changes how programs run: keep the secret in another variable")
    return FromEnvironment(name)


def _path(path: str, where: str) -> FromFile:
    if not path.startswith("/") or path == "/" or ".." in Path(path).parts or _UNSAFE_IN_PATH.search(path):
        raise ConfigError(where, "the path of a secret is absolute and plain", hint="as in file:///run/secrets/proxy")
    return FromFile(path)


def _one_password(text: str, where: str) -> FromOnePassword:
    segments = text.split("/")
    if len(segments) not in {3, 4} or not all(segments):
        raise ConfigError(where, "the op:// reference needs a vault, an item and a field", hint=_EXPECTED)
    _check_plain("op", text, where, _SHELL | set("?#"))
    return FromOnePassword(f"op://{text}")


def _bitwarden(text: str, where: str) -> FromBitwarden:
    segments = text.split("/")
    if len(segments) > 2 or not all(segments):
        raise ConfigError(where, "the bw:// reference needs an item, or an item and a field", hint=_EXPECTED)
    if text.startswith("-") or "=" in text:
        raise ConfigError(where, "the bw:// reference could be taken for an option", hint=_EXPECTED)
    _check_plain("bw", text, where, _SHELL)
    return FromBitwarden(segments[0], segments[1] if len(segments) > 1 else "password")


def _check_plain(scheme: str, text: str, where: str, unsafe: set[str] | frozenset[str]) -> None:
    if unsafe & set(text):
        problem = f"the {scheme}:// reference has a character that means something to a shell"
        raise ConfigError(where, problem, hint=_EXPECTED)


def _keyring(text: str, where: str) -> FromKeyring:
    service, account, decode = _account("keyring", text, where)
    return FromKeyring(service, account, decode)


def _apple(text: str, where: str) -> FromApplePasswords:
    server, account, _ = _account("apple-password", text, where)
    return FromApplePasswords(server, account)


def _account(scheme: str, text: str, where: str) -> tuple[str, str, bool]:
    path, mark, query = text.partition("?")
    segments = path.split("/")
    if len(segments) != 2 or not all(segments) or len(text) > _MAX_LENGTH or "#" in text or "\0" in text:
        raise ConfigError(where, f"the {scheme}:// reference needs a service and an account", hint=_EXPECTED)
    if mark and query != _DECODE:
        raise ConfigError(where, f"the {scheme}:// reference has a query that means nothing", hint=_EXPECTED)
    return segments[0], segments[1], bool(mark)


def _command(text: str, where: str) -> FromCommand:
    if not _NAME.fullmatch(text):
        raise ConfigError(where, "the cmd:// reference needs a name of letters, digits and _", hint=_EXPECTED)
    return FromCommand(text)


def _host_store(text: str, where: str) -> FromHostStore:
    return FromHostStore(_entry("systemd-creds", text, where))


def _credentials_directory(text: str, where: str) -> FromCredentialsDirectory:
    return FromCredentialsDirectory(_entry("credentials-directory", text, where))


def _entry(scheme: str, text: str, where: str) -> str:
    if not _ENTRY_NAME.fullmatch(text):
        raise ConfigError(where, f"the {scheme}:// reference needs a name, not a path", hint=_EXPECTED)
    return text


_SCHEMES: Final[dict[str, Callable[[str, str], Reference]]] = {
    "env": _variable,
    "file": _path,
    "op": _one_password,
    "bw": _bitwarden,
    "cmd": _command,
    "keyring": _keyring,
    "apple-password": _apple,
    "apple-passwords": _apple,
    "systemd-creds": _host_store,
    "credentials-directory": _credentials_directory,
}
