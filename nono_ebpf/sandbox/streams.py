"""Pipes in place of standard streams that are unix sockets.

A socket brings descriptors along (unix(7), SCM_RIGHTS): who holds its other end could hand a network socket in. Bytes
are all that a stream is for, so a copier stands between. Editors and Node start programs with such streams.
"""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import suppress

_FLUSH_S = 10.0


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
    return subprocess.Popen(["cat"], stdin=source, stdout=sink, stderr=subprocess.DEVNULL, start_new_session=True)
