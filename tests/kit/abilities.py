"""What the running kernel has of the things that attacks and defences need, asked of the kernel itself."""

from __future__ import annotations

import ctypes

_LANDLOCK_CREATE_RULESET, _VERSION = 444, 1
# landlock(7): from these on it scopes abstract sockets and signals, and resolving of unix sockets by their names.
SCOPES, RESOLVES_UNIX = 6, 9


def landlock_abi() -> int:
    """The version of Landlock's interface; 0 where there is none."""
    version = ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(0, int(version))
