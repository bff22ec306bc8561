"""What every source has in common: what is read, what a secret may look like, how it is said that there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from nono_ebpf.credentials.references import redacted
from nono_ebpf.credentials.secret import MAX_BYTES, Secret
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nono_ebpf.credentials.files import FileVersion
    from nono_ebpf.credentials.references import Reference

State = Literal[
    "missing", "ambiguous", "empty", "unreadable", "not_private", "symlink", "not_a_file", "too_large", "has_newline",
    "locked", "no_keyring", "no_program", "timed_out", "failed", "unsupported",
]  # fmt: skip
# The largest secret, the end of its line, and one byte that tells that there is more.
BUFFER_BYTES: Final = MAX_BYTES + 3
_UNSAFE = re.compile(rb"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Whose rights a source is read with, and in which environment.

    `uid` is the process's own. `owner`: whose files are taken besides root's. `shared_ok`: also files that other
    accounts can read.
    """

    uid: int
    owner: int
    environment: Mapping[str, str]
    shared_ok: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A secret as it was found. `version` None: only reading it again tells whether it has changed."""

    value: Secret
    version: FileVersion | None = None


def unavailable(reference: Reference, state: State, problem: str) -> CredentialUnavailable:
    """To be raised. `problem` never says what was found."""
    return CredentialUnavailable(redacted(reference), state, problem)


def checked(reference: Reference, content: bytearray | memoryview) -> Secret:
    """The secret in `content`, which is overwritten: without the one line end that editors put there.

    Raises:
        CredentialUnavailable: it is empty, too large, or would not stay in one field of a request.
    """
    with memoryview(content) as view:
        length = _without_line_end(view)
        try:
            if not length:
                raise unavailable(reference, "empty", "what is kept there is empty")
            if length > MAX_BYTES:
                raise unavailable(reference, "too_large", f"what is kept there is larger than {MAX_BYTES} bytes")
            if _UNSAFE.search(view[:length]):
                raise unavailable(reference, "has_newline", "what is kept there has more than one line, or a NUL")
            return Secret(view[:length])
        finally:
            view[:] = bytes(len(view))


def _without_line_end(view: memoryview) -> int:
    length = len(view)
    if length and view[length - 1] == ord("\n"):
        length -= 1
        if length and view[length - 1] == ord("\r"):
            length -= 1
    return length
