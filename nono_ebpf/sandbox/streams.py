"""The standard streams: which are taken, and pipes in place of those that are unix sockets.

A socket brings descriptors along (unix(7), SCM_RIGHTS): who holds its other end could hand a network socket in. Bytes
are all that a stream is for, so a copier stands between. Editors and Node start programs with such streams.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from nono_ebpf.errors import ConfigError
from nono_ebpf.kernel import libc, mounts

_HARMLESS_DEVICES = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))  # null, zero, full, random, urandom
_PTY_MASTER = os.makedev(5, 2)  # pts(4): what is written to it is typed at the terminal
_NAMESPACES = ("net", "mnt", "pid", "user", "uts", "ipc", "cgroup", "time")  # nsfs: `net:[4026531840]`
_KERNEL_FILES = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "bpf", "debugfs", "tracefs", "pidfd", *_NAMESPACES))
_FLUSH_S = 10.0
# Whoever made the socket may have made it non-blocking, which is not ours to change.
_COPY = """
import os, select
def until(fd, event):
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
while True:
    try:
        data = os.read(0, 65536)
    except BlockingIOError:
        until(0, select.POLLIN)
        continue
    if not data:
        break
    while data:
        try:
            data = data[os.write(1, data):]
        except BlockingIOError:
            until(1, select.POLLOUT)
"""


def check() -> None:
    """A socket of the host's network namespace could be connected elsewhere, and leads past every hook."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            raise ConfigError(name, "is closed", hint="give it /dev/null") from None
        if stat.S_ISDIR(mode):
            raise ConfigError(name, "is a directory")
        if not _is_stream(fd, mode):
            raise ConfigError(name, "is no file, pipe or terminal", hint="put a pipe between: `cat | …`")
        if stat.S_ISSOCK(mode) and not _is_connected_unix(fd):
            raise ConfigError(name, "is a network socket, a way past the sandbox", hint="put a pipe between: `cat | …`")


def _is_stream(fd: int, mode: int) -> bool:
    """What a shell redirects to: no handle of something in the kernel, which may do more than be read and written."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        return False
    if stat.S_ISCHR(mode):
        device = os.fstat(fd).st_rdev
        return device in _HARMLESS_DEVICES or (os.isatty(fd) and device != _PTY_MASTER)
    if stat.S_ISREG(mode):
        return _kind_of_file_system(fd) not in _KERNEL_FILES
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _kind_of_file_system(fd: int) -> str:
    """As the mount table has it; of a file that is on no mount, such as a memfd, what its link says."""
    target = str(Path(f"/proc/self/fd/{fd}").readlink())
    if not target.startswith("/"):
        return target.partition(":")[0]
    device = os.fstat(fd).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    return next((mount.kind for mount in mounts.read() if mount.device == name), "")


def _is_connected_unix(fd: int) -> bool:
    """Connected stream sockets of AF_UNIX cannot be turned elsewhere."""
    with socket.socket(fileno=os.dup(fd)) as stream:
        try:
            stream.getpeername()
        except OSError:
            return False
        return stream.family == socket.AF_UNIX and stream.type == socket.SOCK_STREAM


class Copiers:
    """What copies between our standard streams as they were and the pipes in their place, in processes of their own."""

    def __init__(self) -> None:
        self._output: list[subprocess.Popen[bytes]] = []
        self._input: subprocess.Popen[bytes] | None = None

    def put_between(self) -> None:
        """Replace those of our streams that are sockets."""
        done: dict[tuple[int, int], int] = {}  # which socket became which stream: stderr may be stdout
        for fd in range(3):
            found = os.fstat(fd)
            if not stat.S_ISSOCK(found.st_mode):
                continue
            same = done.get((found.st_dev, found.st_ino))
            if fd == 0:
                self._replace_input()
            elif same is not None:
                os.dup2(same, fd)
            else:
                self._replace_output(fd)
                done[found.st_dev, found.st_ino] = fd

    def finish(self) -> None:
        """What was written has arrived. Our streams lead nowhere afterwards."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (1, 2) if self._output else ():
            os.dup2(null, fd)
        os.close(null)
        for copier in self._output:
            with suppress(subprocess.TimeoutExpired):  # nobody reads
                copier.wait(_FLUSH_S)
        for copier in (*self._output, *filter(None, [self._input])):
            copier.kill()
            copier.wait()

    def _replace_input(self) -> None:
        reading, writing = os.pipe()
        self._input = _copier(0, writing)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    def _replace_output(self, fd: int) -> None:
        reading, writing = os.pipe()
        self._output.append(_copier(reading, fd))
        os.close(reading)
        os.dup2(writing, fd)
        os.close(writing)


def _copier(source: int, sink: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", "-c", _COPY]
    return subprocess.Popen(
        command,
        stdin=source,
        stdout=sink,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL),  # no threads here
    )
