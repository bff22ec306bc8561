"""The supervisor's side of the proxy process: start, hand over, stop. The other side is nono_ebpf/proxy.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from nono_ebpf.errors import SandboxError
from nono_ebpf.sandbox import handover, signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nono_ebpf.kernel.cgroup import Cgroup

PROGRAM = ("-m", "nono_ebpf.proxy")
_STOP_TIMEOUT_S = 5.0


class ProxyProcess:
    """A fresh interpreter in a session of its own (the terminal's signals are not for it), in the proxy's cgroup."""

    def __init__(self, group: Cgroup) -> None:
        self._lifeline, theirs = socket.socketpair()
        stderr = to_write_only()

        def enter() -> None:
            group.join()
            signals.restore_defaults()

        self._process = subprocess.Popen(
            [sys.executable, "-I", *PROGRAM, str(theirs.fileno())],
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

    def serve(self, plan: handover.ProxyPlan, fds: Sequence[int]) -> bytes:
        """Give it everything and wait until it serves. The certificate (PEM) of its CA, if it has one."""
        try:
            handover.send(self._lifeline, plan, fds)
            answer = handover.receive_answer(self._lifeline)
        except OSError as error:
            raise SandboxError("the proxy process ended while it started") from error
        if answer is None:
            raise SandboxError("the proxy process could not start; its message is above")
        return answer

    def ended(self, wait_status: int) -> None:
        """It was reaped elsewhere."""
        self._process.returncode = os.waitstatus_to_exitcode(wait_status)

    def stop(self) -> None:
        """An orderly end: it closes its flows and says what was denied."""
        with suppress(OSError):  # it is gone already, or does not end: `end` sees to that
            self._lifeline.send(handover.STOP)
            self._lifeline.settimeout(_STOP_TIMEOUT_S)
            self._lifeline.recv(1)  # its end of the lifeline closes with it

    def end(self) -> None:
        """Whatever state it is in."""
        self._lifeline.close()
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def to_write_only() -> int | None:
    """Our stderr for somebody who is not to read what is typed there, the caller's to close.

    None: it is no terminal, and is passed on.
    """
    if not os.isatty(2):
        return None
    return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
