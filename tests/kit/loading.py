"""Runs load.c: its server in the world, its client in a sandbox. An order on stdin, a JSON line back."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.children import as_user
from kit.expect import require
from kit.namespaces import enter_command
from kit.patience import patient

if TYPE_CHECKING:
    from kit.machine import Machine

SOURCE = Path(__file__).with_name("load.c")
PATIENCE_S = patient(300)


def build(directory: Path) -> Path:
    """The program, compiled into `directory`, which everybody can read."""
    program = directory / "load"
    subprocess.run([require("gcc"), "-O2", "-o", str(program), str(SOURCE)], check=True)
    return program


class Talker:
    """A process of load.c, up when this returns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.answer()

    def tell(self, order: str) -> None:
        """Give an order without waiting for its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()

    def ask(self, order: str) -> dict[str, Any]:
        """What comes back for an order."""
        self.tell(order)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """What comes back for the order that was told last."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        assert ready, f"no answer after {PATIENCE_S} s"
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> int:
        """End of orders; the exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        return status


def start_server(program: Path, netns: str, port: int) -> Talker:
    """The server on every address of namespace `netns`."""
    command = [*enter_command(netns), *as_user("nobody"), str(program), "server", str(port)]
    return Talker(_popen(command))


def start_client(program: Path, machine: Machine, name: str, port: int) -> Talker:
    """The client, for one address of `name`, in a sandbox on `machine` that may reach `name`:`port` alone."""
    find = f'exec {program} client "$(getent ahosts {name} | cut -d" " -f1 | head -n1)" {port}'
    run = [sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", "nobody", "--allow-domain", f"{name}:{port}"]
    return Talker(_popen(machine.enter([*run, "--", "sh", "-c", find]), machine.environment()))


def _popen(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
