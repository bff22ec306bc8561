"""The supervisor's side of a process of ours that serves the sandbox: how it is started, told to end, and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STOP_TIMEOUT_S = 15.0  # what it has not written by then is lost: the last of the audit log, and the summary


class HelperProcess:
    """A fresh interpreter in a session of its own: the terminal's signals are not for it, nor what is typed there.

    `program`: what the interpreter is told to run. `lifeline`: the socket whose other end is its only argument. `enter`
    is called in it before anything else, `order` sent to it to end.
    """

    def __init__(self, program: Sequence[str], enter: Callable[[], None], order: bytes) -> None:
        self._order = order
        self.lifeline, theirs = socket.socketpair()
        stderr = _to_write_only()
        self._process = subprocess.Popen(
            [sys.executable, "-I", *program, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            preexec_fn=enter,  # no threads here
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        theirs.close()
        if stderr is not None:
            os.close(stderr)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Nobody has reaped it."""
        return self._process.returncode is None

    def ended(self, wait_status: int) -> None:
        """It was reaped elsewhere."""
        self._process.returncode = os.waitstatus_to_exitcode(wait_status)

    def stop(self) -> None:
        """An orderly end: it finishes what it does, and overwrites what it holds."""
        with suppress(OSError):  # it is gone already, or does not end: `end` sees to that
            self.lifeline.send(self._order)
            self.lifeline.settimeout(_STOP_TIMEOUT_S)
            self.lifeline.recv(1)  # its end of the lifeline closes with it

    def end(self) -> None:
        """Whatever state it is in."""
        self.lifeline.close()
        if self.running:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def _to_write_only() -> int | None:
    """Our stderr for somebody who is not to read what is typed there; None: it is no terminal, and is passed on."""
    if not os.isatty(2):
        return None
    return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
