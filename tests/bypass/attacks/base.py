"""What the attacks share. Standard library only: they run where nothing is installed.

An attack returns what it got ("done", a reply, a dictionary of those) or the name of the error that refused it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import shutil
import socket
import struct
import tempfile
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Of one connection; a guest without hardware virtualisation is 10 to 25 times slower than this machine.
PATIENCE_S = 120
PAUSE_S = 0.05  # between the pieces of what is said
SECRET = b"s3cret"
# The field by which a request to the proxy shows the session token. Only inside is it known: `shown` puts it in.
AUTHORIZED = "Proxy-Authorization: Bearer <token>\r\n"
DONE = "done"
LIBC = ctypes.CDLL(None, use_errno=True)
# x86-64 and arm64 share the numbers from 424 on; below, each has its own.
_NUMBERS = {
    "x86_64": {"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "kcmp": 312,
               "process_vm_readv": 310, "kexec_load": 246, "init_module": 175, "open_by_handle_at": 304,
               "add_key": 248, "keyctl": 250, "socket": 41, "ptrace": 101, "mq_open": 240, "clone3": 435,
               "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "setns": 308, "sendmmsg": 307},
    "aarch64": {"bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "kcmp": 272,
                "process_vm_readv": 270, "kexec_load": 104, "init_module": 105, "open_by_handle_at": 265,
                "add_key": 217, "keyctl": 219, "socket": 198, "ptrace": 117, "mq_open": 180, "clone3": 435,
                "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "setns": 268, "sendmmsg": 269},
}  # fmt: skip


def shown(request: str) -> str:
    """`request`, showing the token of the sandbox we are in."""
    return request.replace("<token>", urlsplit(os.environ["HTTP_PROXY"]).password or "")


def number(call: str) -> int:
    """The number of a system call on this machine."""
    return _NUMBERS[platform.machine()][call]


def name_of(code: int | None) -> str:
    """An error's name, the same on every machine where one number has two."""
    names = {errno.ENOTSUP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK", errno.EAGAIN: "EAGAIN"}
    return names.get(code or 0) or errno.errorcode.get(code or 0, f"error {code}")


def failure() -> str:
    """The error of the last call into libc."""
    return name_of(ctypes.get_errno())


def syscall(call: str, *arguments: Any) -> str:
    """DONE, or why the system call failed."""
    return DONE if raw_syscall(call, *arguments) >= 0 else failure()


def raw_syscall(call: str, *arguments: Any) -> int:
    """What it returned; integers are passed in full width."""
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return int(LIBC.syscall(ctypes.c_long(number(call)), *wide))


def told(step: Callable[..., object], *arguments: object) -> str:
    """DONE, or the name of the error by which `step` failed."""
    try:
        step(*arguments)
    except OSError as error:
        return name_of(error.errno) if error.errno else type(error).__name__
    return DONE


def each(steps: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """`told` of every step."""
    return {name: told(step) for name, step in steps.items()}


def family_of(address: str) -> socket.AddressFamily:
    """By its spelling."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def stream(address: str, protocol: int = 0) -> socket.socket:
    """A TCP socket with a deadline."""
    opened = socket.socket(family_of(address), socket.SOCK_STREAM, protocol)
    opened.settimeout(PATIENCE_S)
    return opened


def converse(opened: socket.socket, data: bytes = SECRET) -> str:
    """Send, end our half, read to the end: whatever came back, as latin-1; or the reset that came instead."""
    opened.settimeout(PATIENCE_S)
    was_reset = say(opened, data)
    got = read_all(opened)
    if was_reset and not got:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return got


def say(opened: socket.socket, *pieces: bytes) -> bool:
    """Send `pieces` and end our half; whether a reset was met, which reading does not tell any more then.

    A reset comes before any of our calls or behind it, as the scheduler likes. What was answered before can be read all
    the same, so that no more than the first of the calls is told of it.
    """
    try:
        for index, piece in enumerate(pieces):
            if index:
                time.sleep(PAUSE_S)
            opened.sendall(piece)
        opened.shutdown(socket.SHUT_WR)
    except ConnectionResetError:
        return True
    except OSError as error:
        if error.errno not in {errno.EPIPE, errno.ENOTCONN}:
            raise
    return False


def read_all(opened: socket.socket) -> str:
    """Everything until the end or the reset."""
    got = b""
    try:
        while data := opened.recv(65536):
            got += data
    except OSError as error:
        if not got:
            raise
        got += f"[{error}]".encode()
    return got.decode("latin-1")


def sockaddr_in(address: str, port: int, family: int = socket.AF_INET) -> bytes:
    """struct sockaddr_in, under whatever family."""
    return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)


def raw_connect(opened: socket.socket, address: bytes) -> str:
    """connect(2) with a structure of the caller's own."""
    return DONE if LIBC.connect(opened.fileno(), address, len(address)) == 0 else failure()


def in_child(step: Callable[[], Any]) -> Any:
    """What `step` returns in a child process: for what cannot be undone."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = step()
        except OSError as error:
            answer = name_of(error.errno) if error.errno else type(error).__name__
        except BaseException as error:  # noqa: BLE001  # the parent's to tell
            answer = repr(error)
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(data) if data else f"ended {status}"


def in_a_place(step: Callable[[str], Any]) -> Any:
    """As `in_child`, with a directory of the child's own, which is gone afterwards."""
    place = tempfile.mkdtemp(prefix=".nono-")
    try:
        return in_child(lambda: step(place))
    finally:
        shutil.rmtree(place, ignore_errors=True)
