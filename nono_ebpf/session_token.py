"""The session token: what a client of the explicit proxy shows to be one of the sandbox's.

The supervisor makes one for each sandbox; the command has it in its environment, the proxy in memory, and nobody
else anywhere. Must not know how it is sent.
"""

from __future__ import annotations

import hmac
import re
import secrets

_BYTES = 32
_TEXT = re.compile(r"[0-9a-f]{64}")


def make() -> str:
    """A new one: 256 random bits as 64 lower-case hexadecimal digits."""
    return secrets.token_hex(_BYTES)


class Token:
    """The proxy's side of a token that `make` made. Has no text form."""

    __slots__ = ("_secret",)

    def __init__(self, text: str) -> None:
        if not _TEXT.fullmatch(text):
            raise ValueError("a session token has 64 lower-case hexadecimal digits")
        self._secret = text.encode("ascii")

    def __repr__(self) -> str:
        return "Token(…)"

    def matches(self, offered: bytes | None) -> bool:
        """Whether this is it; how long that takes does not depend on how much of it is right."""
        return offered is not None and hmac.compare_digest(self._secret, offered)

    def redacted(self, text: str) -> str:
        """`text` with `{}` wherever this stands in it."""
        return text.replace(self._secret.decode("ascii"), "{}")
