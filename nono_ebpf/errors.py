"""Every exception this package raises on purpose.

::

    NonoError
    ├─ ConfigError          the operator wrote something we cannot obey       → one line, exit 2
    ├─ InvalidAuthority     a host or host:port that has no canonical form    → whoever wrote it is told
    ├─ ClientProtocolError  the sandboxed program broke its protocol          → answered, audited
    ├─ UpstreamError        the far side failed: resolve, connect, read, write → answered, audited
    ├─ CredentialUnavailable a credential that cannot be had now              → answered (503), audited
    ├─ SandboxError         we failed to build or keep a sandbox              → one line, exit 125
    │  └─ LoadError         ... the programs do not compile, load or attach   → one line, exit 125
    └─ KernelError          the kernel refused an operation                   → one line, exit 125
       └─ NotSupported      ... because it does not have the feature          → one line, exit 2

A denial is not here: it is an ordinary answer of `nono_ebpf.policy.decide`.
"""

from __future__ import annotations

import os
from typing import Literal


class NonoError(Exception):
    """Base of the tree; `str()` is one line that a person can act on."""


class ConfigError(NonoError):
    """The operator's input cannot be obeyed. `where` names the option or the path inside the file."""

    def __init__(self, where: str, problem: str, *, hint: str = "") -> None:
        self.where, self.problem, self.hint = where, problem, hint
        super().__init__(printable(f"{where}: {problem}" + (f"; {hint}" if hint else "")))


class InvalidAuthority(NonoError):
    """`text` (shown escaped) is not a host or host:port with exactly one meaning."""

    def __init__(self, text: str, problem: str) -> None:
        self.text, self.problem = text, problem
        super().__init__(f"{text[:300]!a}: {problem}")


class ClientProtocolError(NonoError):
    """Bytes from the sandboxed program are malformed or ambiguous. `status` is the HTTP answer it earns."""

    def __init__(self, problem: str, *, status: int = 400) -> None:
        self.problem, self.status = problem, status
        super().__init__(problem)


def printable(text: str) -> str:
    """What somebody else wrote, with a terminal's control characters, those that turn text around, and half characters
    as escapes.
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


UpstreamPhase = Literal["resolve", "connect", "read", "write"]


class UpstreamError(NonoError):
    """The far side failed in `phase`; `target` is what we were talking to."""

    def __init__(self, phase: UpstreamPhase, target: str, problem: str) -> None:
        self.phase, self.target, self.problem = phase, target, problem
        super().__init__(f"{phase} {target}: {problem}")


class CredentialUnavailable(NonoError):
    """The credential `name` cannot be had, or not be put into a request: `state` is one word for programs, `problem` a
    clause for a person. Never says what was found.
    """

    def __init__(self, name: str, state: str, problem: str) -> None:
        self.name, self.state, self.problem = name, state, problem
        super().__init__(printable(f"the credential {name} is not available: {problem}"))


class SandboxError(NonoError):
    """A sandbox could not be built or did not hold; nothing of it is left behind."""


class LoadError(SandboxError):
    """Compiling, loading or attaching failed; `log` holds what the compiler and the verifier printed."""

    def __init__(self, problem: str, log: str) -> None:
        self.log = log
        super().__init__(problem)


class KernelError(NonoError):
    """The kernel refused `operation` with `errno`."""

    def __init__(self, operation: str, errno: int, *, hint: str = "") -> None:
        self.operation, self.errno = operation, errno
        super().__init__(f"{operation}: {os.strerror(errno)}" + (f"; {hint}" if hint else ""))


class NotSupported(KernelError):
    """The kernel conclusively lacks what `operation` needs."""
