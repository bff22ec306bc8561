"""System calls: those that the command is refused, and the few that the proxy is left.

Through libseccomp's own Python binding (the distribution's), over the native ABI: calls of any other ABI end the
process. Comparisons are 64 bits wide while the kernel takes some arguments as 32: each is written so that setting the
upper half does not slip by. seccomp(2), seccomp_rule_add(3).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import termios

import seccomp

from nono_ebpf.kernel import libc

_FAMILIES = frozenset((socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK))
_PAIRED = frozenset((socket.AF_UNIX,))
_ROUTE = 0  # NETLINK_ROUTE: getifaddrs(3) and getaddrinfo(3) ask it
_LOW_HALF = 0xFFFF_FFFF
_SOCK_TYPE_MASK = 0xF  # include/linux/net.h
_THREAD, _NAMESPACES = 0x1_0000, 0x7E02_0080  # clone(2): CLONE_THREAD; CLONE_NEW* of every kind
_TIOCLINUX = 0x541C  # ioctl_console(2): pastes into a virtual console; termios has no name for it

# A ring opens sockets of any family without a system call that a filter would see. The account's user keyring is
# the same inside: its ids are.
_UNKNOWN_TO_THE_COMMAND = ("io_uring_setup", "keyctl", "add_key", "request_key")
# Ways into the kernel, or past path checks, that no ordinary program needs.
_REFUSED_TO_THE_COMMAND = ("bpf", "perf_event_open", "userfaultfd", "open_by_handle_at")

# What is left of the kernel to a process that moves bytes between sockets it was given and sockets it dials.
_PROXYS_OWN = (
    *("read", "readv", "write", "writev", "lseek", "close", "splice", "pipe2", "eventfd2"),
    *("recvfrom", "recvmsg", "sendto", "sendmsg", "accept4", "connect", "bind", "shutdown"),
    *("getsockname", "getpeername", "getsockopt", "setsockopt"),
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"),
    *("munmap", "mremap", "madvise", "mlock", "brk", "futex", "rseq", "sched_yield", "getrandom"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "gettimeofday", "nanosleep", "time"),
    *("set_robust_list", "sched_getaffinity"),
    *("fstat", "newfstatat", "statx", "getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "uname"),
    *("exit", "exit_group"),
)
_MORE_THAN_READING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_PATH
_FD_CONTROLS = (
    # Without F_SETFL: the audit log stays in append mode.
    *(fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETPIPE_SZ, fcntl.F_SETPIPE_SZ),
)


def confine_command() -> None:
    """Filter this process and its descendants, for good. A list of what is refused. Sets no_new_privs."""
    filtered = seccomp.SyscallFilter(seccomp.ALLOW)
    _refuse_families(filtered)
    for call in _UNKNOWN_TO_THE_COMMAND:
        filtered.add_rule(seccomp.ERRNO(errno.ENOSYS), call)
    for call in _REFUSED_TO_THE_COMMAND:
        filtered.add_rule(seccomp.ERRNO(errno.EPERM), call)
    for request in (termios.TIOCSTI, _TIOCLINUX, termios.TIOCSETD):
        filtered.add_rule(seccomp.ERRNO(errno.EPERM), "ioctl", _word(1, request))
    filtered.load()


def confine_proxy() -> None:
    """Filter this process, for good. A list of what is left; everything else is EPERM. Sets no_new_privs.

    No program can be started, no process be made, no file be opened for writing, no socket be made that is
    not TCP or UDP, none be listened on.
    """
    filtered = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for call in _PROXYS_OWN:
        filtered.add_rule(seccomp.ALLOW, call)
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            same_kind = seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE_MASK, kind)
            filtered.add_rule(seccomp.ALLOW, "socket", _word(0, family), same_kind, _word(2, 0))
    # A loop wakes itself with one. One of datagrams could be turned to any path.
    stream = seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE_MASK, socket.SOCK_STREAM)
    filtered.add_rule(seccomp.ALLOW, "socketpair", _word(0, socket.AF_UNIX), stream)
    filtered.add_rule(seccomp.ALLOW, "bpf", _word(0, libc.BPF_MAP_LOOKUP_ELEM))
    for call in ("mmap", "mprotect"):  # no new code
        filtered.add_rule(seccomp.ALLOW, call, seccomp.Arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0))
    for control in _FD_CONTROLS:
        filtered.add_rule(seccomp.ALLOW, "fcntl", _word(1, control))
    filtered.add_rule(seccomp.ALLOW, "ioctl", _word(1, termios.FIONBIO))
    # Threads, of which a loop has a few for name resolution, and no processes. clone3(2) has its flags in memory,
    # where no filter can look; glibc takes clone(2) instead.
    filtered.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _THREAD | _NAMESPACES, _THREAD))
    filtered.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    filtered.add_rule(seccomp.ALLOW, "openat", seccomp.Arg(2, seccomp.MASKED_EQ, _MORE_THAN_READING, os.O_RDONLY))
    filtered.load()


def _word(argument: int, value: int) -> seccomp.Arg:
    """The kernel looks at the lower 32 bits."""
    return seccomp.Arg(argument, seccomp.MASKED_EQ, _LOW_HALF, value)


def _refuse_families(filtered: seccomp.SyscallFilter) -> None:
    """AF_PACKET, AF_VSOCK, AF_ALG and their like, and every netlink but the routing one."""
    unsupported = seccomp.ERRNO(errno.EAFNOSUPPORT)
    for call, families in (("socket", _FAMILIES), ("socketpair", _PAIRED)):
        for family in range(max(families)):
            if family not in families:
                filtered.add_rule(unsupported, call, seccomp.Arg(0, seccomp.EQ, family))
        # This one also has every value with a bit of its upper half set.
        filtered.add_rule(unsupported, call, seccomp.Arg(0, seccomp.GT, max(families)))
    netlink = seccomp.Arg(0, seccomp.EQ, socket.AF_NETLINK)
    other = seccomp.ERRNO(errno.EPROTONOSUPPORT)
    filtered.add_rule(other, "socket", netlink, seccomp.Arg(2, seccomp.NE, _ROUTE))
