"""Clients that run at once in one sandbox, all of which are searched for a secret while each waits for a response.

What each is told of the proxy is its road (`programs/errands.py`); the session token stands in commands, files and
values as @TOKEN@.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from kit.credentials import cgroup_of, find_secrets, of_ours
from kit.machine import ROOT, Record, Step, _program, read_records
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kit.api_server import ApiServer
    from kit.machine import Machine

Road = Literal["redirect", "connect", "reverse"]
PROGRAM = str(ROOT / "tests/clients/programs/errands.py")
TIMEOUT_S = patient(300)


@dataclass(frozen=True, slots=True)
class Errand:
    """One client. It waits at the gate under its name, unless it is not `held`."""

    name: str
    command: Sequence[str]
    road: Road = "redirect"
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    held: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """How all of them ended.

    `found` has, by secret, where the sandbox had it while the clients in `held` waited, `shown` where our own processes
    show one. `output` is everything that was printed, ours included.
    """

    steps: Mapping[str, Step]
    token: str
    held: frozenset[str]
    found: Mapping[str, Sequence[str]]
    shown: Sequence[str]
    output: str
    records: tuple[Record, ...]

    def step(self, name: str) -> Step:
        """How one ended."""
        assert name in self.steps, self.output
        return self.steps[name]

    def requests(self, **facts: object) -> list[Record]:
        """The records of requests that were let through in which every one of `facts` holds."""
        wanted = {"event": "request", "decision": "allow", **facts}
        return [each for each in self.records if all(each.get(key) == value for key, value in wanted.items())]


class _Lines:
    """The lines of a stream, read by a thread of its own."""

    def __init__(self, stream: object) -> None:
        self.text: list[str] = []
        self._thread = threading.Thread(target=lambda: self.text.extend(iter(stream.readline, "")))  # type: ignore[attr-defined]
        self._thread.start()

    def whole(self) -> str:
        """All of it, at the end of the stream."""
        self._thread.join(TIMEOUT_S)
        return "".join(self.text)

    def ended(self) -> set[str]:
        """The names of the errands that have ended."""
        return {json.loads(line)[0] for line in [*self.text] if line.endswith("\n")}


def run(
    machine: Machine,
    server: ApiServer,
    options: Sequence[str],
    errands: Sequence[Errand],
    *,
    secrets: Mapping[str, str],
    env: Mapping[str, str] | None = None,
    log: Path,
) -> Outcome:
    """Run them in a sandbox made with `options`, and search it for the values of `secrets`, by name."""
    started_ns = time.time_ns()
    server.gate.shut()
    wanted = log.with_suffix(".errands")
    wanted.write_text(json.dumps([{**asdict(each), "command": machine._shown(each.command)} for each in errands]))
    inside = machine._shown([sys.executable, PROGRAM, str(wanted)])
    command = [*_program(), *options, "--audit-log", str(log), "--", *inside]
    waiting = {each.name for each in errands if each.held}
    process = machine._popen(command, env)
    out, err = _Lines(process.stdout), _Lines(process.stderr)
    try:
        server.held(waiting, lambda: process.poll() is not None or waiting <= server.gate.waiting | out.ended())
        held = frozenset(server.gate.waiting & waiting - out.ended())
        found = find_secrets(cgroup_of(process.pid), secrets, started_ns) if held else {}
        shown = of_ours(process.pid, list(secrets.values())) if held else []
        server.gate.open()
        process.wait(TIMEOUT_S)
    finally:
        server.gate.open()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output = out.whole() + err.whole()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    told = {name: Step(status, said, complained) for name, status, said, complained in map(json.loads, out.text)}
    token = told.pop("", Step(-1, "", "")).stdout
    assert token, output
    return Outcome(told, token, held, found, shown, output, read_records(log))
