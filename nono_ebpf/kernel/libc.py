"""Typed, raising wrappers of the system calls that Python does not have (3.11).

Every function raises `KernelError` with the errno. Sources: unshare(2), setns(2), mount(2), prctl(2),
capabilities(7), bpf(2); constants from the UAPI headers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from nono_ebpf.errors import KernelError

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

BPF_MAP_LOOKUP_ELEM = 1
BPF_MAP_UPDATE_ELEM = 2
BPF_OBJ_PIN = 6
BPF_LINK_CREATE = 28

_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
_SYS_OPENAT2 = 437  # on every architecture
_MNT_DETACH = 2
_AT_FDCWD, _RESOLVE_NO_SYMLINKS = -100, 0x04
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(operation: str, result: int) -> int:
    if result < 0:
        raise KernelError(operation, ctypes.get_errno())
    return result


def _syscall(operation: str, numbers: dict[str, int], *arguments: object) -> int:
    number = numbers.get(platform.machine())
    if number is None:
        raise KernelError(f"{operation} on {platform.machine()}", errno.ENOSYS)
    return _check(operation, _libc.syscall(ctypes.c_long(number), *arguments))


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW* `flags`; CLONE_NEWPID takes effect for children."""
    _check("unshare", _libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """Enter the namespace behind `fd`, which must be of the kind `flags`."""
    _check("setns", _libc.setns(fd, flags))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _check(f"mount on {target}", result)


def unmount(target: str) -> None:
    """umount2(2) with MNT_DETACH: with what is mounted below."""
    _check(f"unmount {target}", _libc.umount2(os.fsencode(target), _MNT_DETACH))


class _OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("flags", "mode", "resolve"))


def open_without_links(path: str, flags: int, mode: int) -> int:
    """openat2(2) with RESOLVE_NO_SYMLINKS (Linux 5.6): ELOOP for a symbolic link anywhere in `path`. The fd is the
    caller's.
    """
    how = _OpenHow(flags, mode, _RESOLVE_NO_SYMLINKS)
    arguments = (ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how), ctypes.sizeof(how))
    return _check(f"open {path}", _libc.syscall(ctypes.c_long(_SYS_OPENAT2), _AT_FDCWD, *arguments))


def prctl(option: int, *arguments: int) -> None:
    """prctl(2), unused arguments zero."""
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _check(f"prctl {option}", _libc.prctl(option, *padded))


def clear_capabilities() -> None:
    """Empty the permitted, effective and inheritable sets of this thread (capset(2), version 3)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _syscall("capset", _SYS_CAPSET, ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def leave_session_keyring() -> None:
    """A new, empty session keyring in place of the inherited one. keyctl_join_session_keyring(3)."""
    try:
        _syscall("keyctl", _SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except KernelError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keyrings has none to inherit
            raise


def bpf(operation: str, command: int, attributes: ctypes.Structure) -> int:
    """bpf(2). The result is a new fd (owned by the caller, close-on-exec) or 0, as `command` defines."""
    return _syscall(operation, _SYS_BPF, command, ctypes.byref(attributes), ctypes.sizeof(attributes))
