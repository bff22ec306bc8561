"""Where a credential is kept, as a profile says it. The grammar is `nono_ebpf.credentials.references`'s."""

from __future__ import annotations

from nono_ebpf.credentials.references import parse_reference

# Nothing of these could name a variable after itself.
_NAMELESS = (
    *("op://", "bw://", "apple-password://", "apple-passwords://", "file://", "cmd://"),
    *("systemd-creds://", "credentials-directory://"),
)


def check_reference(text: str, source: str) -> None:
    """Raises ConfigError, whose `where` is `source`: `text` names no place where a credential is kept."""
    parse_reference(text, source)


def check_variable(text: str, source: str) -> None:
    """A variable that may be set for the command. Raises ConfigError, whose `where` is `source`."""
    parse_reference(f"env://{text}", source)


def needs_variable(reference: str) -> bool:
    """Whether the variable for a client has to be named, because the reference has no name to make one of."""
    return reference.startswith(_NAMELESS)


def command_name(reference: str) -> str | None:
    """The entry of `credential_capture` that `cmd://NAME` is about; None for any other reference."""
    return reference.removeprefix("cmd://") if reference.startswith("cmd://") else None
