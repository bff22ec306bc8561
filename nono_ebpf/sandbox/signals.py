"""Waiting for a child: signals that the terminal sends reach it anyway, others are passed on."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FORWARDED = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
WAITED_FOR = FORWARDED | {signal.SIGCHLD}


def block() -> None:
    """From now on they are taken by `wait_for` alone. Job control (SIGTSTP, SIGCONT) keeps its default."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)


def restore_defaults() -> None:
    """Before exec: what Python or we changed. An ignored SIGINT of a background job stays the caller's choice."""
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED_FOR)


def wait_for(child: int, on_exit: Callable[[int, int], None]) -> int:
    """Until `child` ends; its exit status as a shell gives it (128 + signal).

    Every other child that ends is given to `on_exit(pid, status)`. What a person typed (the kernel sent it to the whole
    process group) is not sent a second time; what a process sent to us is meant for the child.
    """
    while True:
        info = signal.sigwaitinfo(WAITED_FOR)
        if info.si_signo != signal.SIGCHLD:
            if info.si_code <= 0:  # SI_USER and the like, not SI_KERNEL: sigaction(2)
                _send(child, info.si_signo)
            continue
        for pid, status in _ended():
            if pid == child:
                return exit_status(status)
            on_exit(pid, status)


def _send(child: int, signum: int) -> None:
    try:
        os.kill(child, signum)
    except ProcessLookupError:
        return  # it has ended; its SIGCHLD is on the way


def _ended() -> list[tuple[int, int]]:
    ended = []
    try:
        while (pid_and_status := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(pid_and_status)
    except ChildProcessError:
        return ended
    return ended


def exit_status(wait_status: int) -> int:
    """As a shell reports it."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
