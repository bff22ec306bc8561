"""What every process has in common that reads a source for us."""

from __future__ import annotations

import ctypes
import signal
from typing import Final

_libc: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """To be called in the child, and again after a change of its ids, which resets it. PR_SET_PDEATHSIG(2const)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
