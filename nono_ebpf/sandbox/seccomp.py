"""The system calls that the command is refused: ways to a socket that no hook sees, to the caller's terminal and keys.

Through libseccomp's own Python binding (the distribution's). A deny list over the native ABI: calls of any other ABI
end the process. Comparisons are 64 bits wide while the kernel takes some arguments as 32: each is written so that
setting the upper half does not slip by. seccomp(2), seccomp_rule_add(3).
"""

from __future__ import annotations

import errno
import socket
import termios

import seccomp

_FAMILIES = frozenset((socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK))
_ROUTE = 0  # NETLINK_ROUTE: getifaddrs(3) and getaddrinfo(3) ask it
_LOW_HALF = 0xFFFF_FFFF
_TIOCLINUX = 0x541C  # ioctl_console(2): pastes into a virtual console; termios has no name for it


def confine() -> None:
    """Filter this process and its descendants, for good. Sets no_new_privs."""
    filtered = seccomp.SyscallFilter(seccomp.ALLOW)
    _refuse_families(filtered)
    # A ring opens sockets of any family without a system call that a filter would see.
    filtered.add_rule(seccomp.ERRNO(errno.ENOSYS), "io_uring_setup")
    # The account's user keyring is the same inside: its ids are.
    for call in ("keyctl", "add_key", "request_key"):
        filtered.add_rule(seccomp.ERRNO(errno.ENOSYS), call)
    for request in (termios.TIOCSTI, _TIOCLINUX):
        same = seccomp.Arg(1, seccomp.MASKED_EQ, _LOW_HALF, request)
        filtered.add_rule(seccomp.ERRNO(errno.EPERM), "ioctl", same)
    filtered.load()


def _refuse_families(filtered: seccomp.SyscallFilter) -> None:
    """AF_PACKET, AF_VSOCK, AF_ALG and their like, and every netlink but the routing one."""
    unsupported = seccomp.ERRNO(errno.EAFNOSUPPORT)
    for family in range(max(_FAMILIES)):
        if family not in _FAMILIES:
            filtered.add_rule(unsupported, "socket", seccomp.Arg(0, seccomp.EQ, family))
    # This one also has every value with a bit of its upper half set.
    filtered.add_rule(unsupported, "socket", seccomp.Arg(0, seccomp.GT, max(_FAMILIES)))
    netlink = seccomp.Arg(0, seccomp.EQ, socket.AF_NETLINK)
    other = seccomp.ERRNO(errno.EPROTONOSUPPORT)
    filtered.add_rule(other, "socket", netlink, seccomp.Arg(2, seccomp.NE, _ROUTE))
