"""Work on a source in a forked process: it may take long, hang, or run somebody else's program, and it can be ended.

To be started while this process has one thread. The child sees none of the parent's secrets (their pages are empty in
it), has no output but its result, and dies with the parent.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NoReturn

from nono_ebpf.credentials import messages
from nono_ebpf.credentials.children import die_with_parent
from nono_ebpf.credentials.reading import unavailable
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from nono_ebpf.credentials.references import Reference

_FDS_MAX: Final = 1 << 20


class Attempt:
    """`work` in a process of its own, which the kernel ends after `deadline_s`. Where that may be waited for, `result`
    is all that is needed; otherwise it is readable at `fileno`, and `receive` says when it is complete.

    Raises:
        CredentialUnavailable: no process can be made now.
    """

    def __init__(self, reference: Reference, deadline_s: float | None, work: Callable[[], Secret]) -> None:
        self._reference, self._deadline_s = reference, deadline_s
        self._message, self._length = bytearray(messages.ANSWER_MAX), 0
        with ExitStack() as on_failure:
            try:
                self._pipe, theirs = os.pipe()
                on_failure.callback(os.close, self._pipe)
                on_failure.callback(os.close, theirs)
                self._pid = os.fork()
            except OSError as error:  # the account has too many
                problem = f"no process can be started to read it: {error.strerror}"
                raise unavailable(reference, "failed", problem) from error
            on_failure.pop_all()
        if self._pid == 0:
            _work(theirs, deadline_s, reference, work)
        os.close(theirs)

    def fileno(self) -> int:
        """Of a pipe."""
        return self._pipe

    def receive(self) -> bool:
        """Take what is there, waiting for some; whether that was the last."""
        got = os.readv(self._pipe, [memoryview(self._message)[self._length :]])
        self._length += got
        return not got

    def result(self) -> Secret:
        """Wait for it; nothing of the child is left.

        Raises:
            CredentialUnavailable: what the work raised, or the child ended without a result.
        """
        while not self.receive():
            continue
        os.close(self._pipe)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        try:
            return self._outcome(status)
        finally:
            self._message[:] = bytes(len(self._message))

    def _outcome(self, status: int) -> Secret:
        if status == -signal.SIGALRM:
            problem = f"there was no answer within {self._deadline_s:.0f} s"
            raise unavailable(self._reference, "timed_out", problem)
        found = messages.split(memoryview(self._message)[: self._length])
        if status != 0 or found is None:
            raise unavailable(self._reference, "failed", f"what reads it ended unexpectedly ({status})")
        answer, value = found
        if answer.state != messages.VALUE:
            raise CredentialUnavailable(answer.name, answer.state, answer.problem)
        return Secret(value)


def _work(pipe: int, deadline_s: float | None, reference: Reference, work: Callable[[], Secret]) -> NoReturn:
    """The child."""
    try:
        die_with_parent()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, deadline_s or 0.0)
        _keep_only(pipe)
        try:
            _send(pipe, messages.Answer(0, messages.VALUE), work())
        except CredentialUnavailable as error:
            _send(pipe, messages.Answer(0, error.state, name=error.name, problem=error.problem))
        except Exception as error:  # noqa: BLE001  # a library's: its message may hold anything
            problem = f"it could not be read ({type(error).__name__})"
            _send(pipe, messages.Answer(0, "failed", name=unavailable(reference, "failed", "").name, problem=problem))
        os._exit(0)
    finally:
        os._exit(1)


def _keep_only(pipe: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, _FDS_MAX)


def _send(pipe: int, answer: messages.Answer, value: Secret | None = None) -> None:
    _write(pipe, memoryview(messages.head(answer)))
    if value is not None:
        with value.lent() as view:
            _write(pipe, view)


def _write(pipe: int, data: memoryview) -> None:
    while data:
        data = data[os.write(pipe, data) :]
