"""What somebody who runs code in the proxy would try. `attempts()` gives the outcome of each, by name.

Run as a program it prints them: the control of the experiment, as an ordinary account that nothing confines.
Everything needed is imported before: the proxy can load nothing once it serves.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_BPF, _PIDFD_OPEN, _MEMFD_CREATE, _KEYCTL, _IO_URING_SETUP, _PERF_EVENT_OPEN = 321, 434, 319, 250, 425, 298
_NEWUSER, _PTRACE_TRACEME, _PR_SET_DUMPABLE, _MAP_UPDATE, _PROG_LOAD = 0x1000_0000, 0, 4, 2, 5


def _called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def _fork() -> None:
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        os._exit(0)


def _exec() -> None:
    """In place: it comes back only when it is refused."""
    os.execv("/bin/true", ["true"])


def _listen(family: int = socket.AF_INET) -> None:
    with socket.socket(family) as server:
        server.listen()


def _bind(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))


def _made(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def _write() -> None:
    path = Path("/tmp/nono-break-in")
    path.write_text("x")
    path.unlink()


def _bpf(command: int) -> None:
    _called(_libc.syscall(_BPF, command, ctypes.create_string_buffer(128), 128))


def _new_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _memfd() -> None:
    os.close(_called(_libc.syscall(_MEMFD_CREATE, b"x", 0)))


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read /etc/hosts": lambda: Path("/etc/hosts").read_text(),
    "dial": lambda: _made(socket.AF_INET, socket.SOCK_STREAM),
    "read the program": lambda: Path(json.__file__).read_text(),
    "read /proc": lambda: Path("/proc/self/environ").read_bytes(),
    "list /": lambda: os.listdir("/"),  # noqa: PTH208  # Path.iterdir does nothing until it is asked
    "write /tmp": _write,
    "append to what it reads": lambda: os.close(os.open("/etc/hosts", os.O_RDWR)),
    "open without reading": lambda: os.close(os.open("/root", os.O_PATH)),
    "leave append mode": lambda: fcntl.fcntl(2, fcntl.F_SETFL, 0),
    "start a process": _fork,
    "run a program": _exec,
    "new code": _new_code,
    "memfd": _memfd,
    "a pair of datagrams": lambda: [end.close() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)],
    "unix socket": lambda: _made(socket.AF_UNIX, socket.SOCK_STREAM),
    "netlink": lambda: _made(socket.AF_NETLINK, socket.SOCK_RAW),
    "multipath": lambda: _made(socket.AF_INET, socket.SOCK_STREAM, 262),
    "ping": lambda: _made(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "packet": lambda: _made(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock": lambda: _made(40, socket.SOCK_STREAM),
    "listen": _listen,
    "bind TCP": lambda: _bind(socket.SOCK_STREAM),
    "signal the supervisor": lambda: os.kill(os.getppid(), 0),
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "pidfd": lambda: os.close(_called(_libc.syscall(_PIDFD_OPEN, os.getppid(), 0))),
    "be traced": lambda: _called(_libc.ptrace(_PTRACE_TRACEME, 0, None, None)),
    "become root": lambda: os.setuid(0),
    "another account": lambda: os.setgroups([0]),
    "user namespace": lambda: _called(_libc.unshare(_NEWUSER)),
    "mount": lambda: _called(_libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
    "dumpable": lambda: _called(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)),
    "keys": lambda: _called(_libc.syscall(_KEYCTL, 0, -3, 1)),
    "io_uring": lambda: _called(_libc.syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))),
    "perf": lambda: _called(_libc.syscall(_PERF_EVENT_OPEN, ctypes.create_string_buffer(128), 0, -1, -1, 0)),
    "load a program": lambda: _bpf(_PROG_LOAD),
    "write a map": lambda: _bpf(_MAP_UPDATE),
    "change directory": lambda: os.chdir("/tmp"),
}


def attempts() -> dict[str, str]:
    """Name to "done", or how the kernel refused it."""
    return {name: _outcome(attempt) for name, attempt in ATTEMPTS.items()}


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    with contextlib.suppress(KeyError):
        del ATTEMPTS["run a program"]  # it would succeed
    sys.stdout.write(json.dumps(attempts()))
