"""Attacks run by an agent that stays (`kit.agent`): one in a sandbox, one outside for the control of an experiment.

A start of a sandbox costs far more than an attack, so that many share one.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import tempfile
import threading
from typing import TYPE_CHECKING, Any

from kit.agent import read_message, write_message
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from kit.agent import Answer

ATTACK_S = patient(180)
START_S = patient(180)
SLACK_S = patient(60)
_AGENT = inspect.getsource(inspect.getmodule(read_message) or object)
COMMAND = ["/usr/bin/python3", "-I", "-c", _AGENT]


class Raised(AssertionError):
    """An attack's own mistake: something else than a system call refused it."""


class Agent:
    """`command` running the agent, with the modules of `attacks`. Called from one thread at a time."""

    def __init__(
        self, command: Sequence[str], modules: Mapping[str, str], *, cwd: str | Path = "/", env: Mapping[str, str]
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
        try:
            self._converse({"modules": dict(modules)}, START_S)
        except BaseException:
            self.close()
            raise

    def answer(self, attack: Callable[..., Any], *arguments: Any, timeout_s: float = ATTACK_S) -> Answer:
        """What came of `attack(*arguments)`, as the agent tells it."""
        request = {"call": [attack.__module__, attack.__name__], "arguments": arguments, "timeout_s": timeout_s}
        return self._converse(request, timeout_s + SLACK_S)

    def call(self, attack: Callable[..., Any], *arguments: Any, timeout_s: float = ATTACK_S) -> Any:
        """What `attack` returned, or the name of the error that ended it ("EPERM", …)."""
        answer = self.answer(attack, *arguments, timeout_s=timeout_s)
        if "returned" in answer:
            return answer["returned"]
        if "error" in answer:
            return answer["error"]
        raise Raised(f"{attack.__name__}: {answer.get('raised', answer)}")

    def _converse(self, message: Any, timeout_s: float) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        watchdog = threading.Timer(timeout_s, self.process.kill)
        watchdog.start()
        try:
            write_message(self.process.stdin.fileno(), message)
            answer = read_message(self.process.stdout.fileno())
        except BrokenPipeError:
            answer = None
        finally:
            watchdog.cancel()
        if answer is None:
            self.process.stdin.close()
            raise AssertionError(f"the agent ended ({self.process.wait(SLACK_S)}): {self.said()}")
        return answer

    def said(self) -> str:
        """What it has said on stderr. Read without moving: the place in the file is its own as well."""
        return os.pread(self._errors.fileno(), os.fstat(self._errors.fileno()).st_size, 0).decode(errors="replace")

    def close(self) -> None:
        """End it; its sandbox goes with it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(SLACK_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
            self._errors.close()


def sources(directory: Path) -> dict[str, str]:
    """The package `directory`, which has no `__init__.py`, and its modules, by their full names."""
    package = directory.name
    return {package: "", **{f"{package}.{path.stem}": path.read_text() for path in sorted(directory.glob("*.py"))}}


def environment() -> dict[str, str]:
    """For an agent outside."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
