"""Where a credential is kept, in every way that nono writes it: `env://`, `file://`, a password manager's entry.

Knows which spellings are sound and which could smuggle something into a command line. Those that can be read are
`nono_ebpf.credentials.sources`'s. What is no reference is not repeated in an error: it may be the secret itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nono_ebpf.credentials.sources import parse_reference
from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_LENGTH = 1024
_NAME = re.compile(r"[A-Za-z0-9_]+")
_SHELL = frozenset(";|&$`(){}<>!\\\"'\n\r\0")
# Nothing of these could name a variable after itself.
_NAMELESS = ("op://", "bw://", "apple-password://", "apple-passwords://", "file://", "cmd://")
_EXPECTED = "write env://NAME, file:///path, op://vault/item/field, bw://item, cmd://NAME or a keyring account"


def check_reference(text: str, source: str) -> None:
    """Raises ConfigError, whose `where` is `source`: `text` names no place where a credential is kept."""
    scheme, separator, rest = text.partition("://")
    if text.startswith(("env://", "file://")):
        parse_reference(text, source)
    elif separator and (check := _SCHEMES.get(scheme)):
        if problem := check(rest):
            raise ConfigError(source, f"the {scheme}:// reference {problem}", hint=_EXPECTED)
    elif not _NAME.fullmatch(text):
        raise ConfigError(source, "it names no place where a secret is kept", hint=_EXPECTED)


def check_variable(text: str, source: str) -> None:
    """A variable that may be set for the command. Raises ConfigError, whose `where` is `source`."""
    parse_reference(f"env://{text}", source)


def needs_variable(reference: str) -> bool:
    """Whether the variable for a client has to be named, because the reference has no name to make one of."""
    return reference.startswith(_NAMELESS)


def command_name(reference: str) -> str | None:
    """The entry of `credential_capture` that `cmd://NAME` is about; None for any other reference."""
    return reference.removeprefix("cmd://") if reference.startswith("cmd://") else None


def _command(text: str) -> str | None:
    return None if _NAME.fullmatch(text) else "needs a name of letters, digits and _"


def _one_password(text: str) -> str | None:
    segments = text.split("/")
    if len(segments) not in {3, 4} or not all(segments):
        return "needs a vault, an item and a field"
    return "has a character that means something to a shell" if (_SHELL | set("?#")) & set(text) else None


def _bitwarden(text: str) -> str | None:
    segments = text.split("/")
    if len(segments) > 2 or not all(segments):
        return "needs an item, or an item and a field"
    if text.startswith("-") or "=" in text:
        return "could be taken for an option"
    return "has a character that means something to a shell" if _SHELL & set(text) else None


def _account(text: str) -> str | None:
    path, mark, query = text.partition("?")
    segments = path.split("/")
    if len(segments) != 2 or not all(segments) or len(text) > _MAX_LENGTH or "#" in text:
        return "needs a service and an account"
    return None if not mark or query == "decode=go-keyring" else "has a query that means nothing"


_SCHEMES: dict[str, Callable[[str], str | None]] = {
    "op": _one_password,
    "bw": _bitwarden,
    "cmd": _command,
    "keyring": _account,
    "apple-password": _account,
    "apple-passwords": _account,
}
