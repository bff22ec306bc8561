"""Giving privilege up, for good. capabilities(7), credentials(7)."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import libc

if TYPE_CHECKING:
    from collections.abc import Sequence

_CAPABILITIES_MAX = 64  # bits in a capability set


def _empty_bounding_set() -> None:
    for capability in range(_CAPABILITIES_MAX):
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
        except KernelError as error:
            if error.errno == errno.EINVAL:  # past the last capability of this kernel
                return
            raise


def take_ids(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Be of that account, for good. The calling process dies with its parent, and nobody of the same uid looks into it:
    a change of ids resets both (PR_SET_PDEATHSIG(2const), PR_SET_DUMPABLE(2const)).
    """
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Turn the calling root process into an ordinary one: ids, every capability set, no_new_privs.

    As with `take_ids`, it dies with its parent, and no other process of the same uid can look into it.
    """
    _empty_bounding_set()
    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL)
    take_ids(uid, gid, groups)
    libc.clear_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
