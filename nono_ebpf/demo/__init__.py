"""`nono-ebpf demo`: test hosts, a sandbox, real clients, and a table of what was tried, what happened and why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nono_ebpf.audit.record import Record, from_line
from nono_ebpf.demo import world
from nono_ebpf.errors import SandboxError
from nono_ebpf.sandbox import sudo
from nono_ebpf.sandbox.user import NOBODY

if TYPE_CHECKING:
    from collections.abc import Sequence

PYTHON = shutil.which("python3", path="/usr/bin:/bin") or "/usr/bin/python3"
ALLOWED = ("api.demo.test", "mail.demo.test:25")
_AUDIT_LINES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing a client in the sandbox tries. `works`: what must come of it."""

    title: str
    command: tuple[str, ...]
    works: bool


def _curl(*arguments: str) -> tuple[str, ...]:
    return ("curl", "-sS", "--max-time", "10", *arguments)


def _python(code: str) -> tuple[str, ...]:
    return (PYTHON, "-c", code)


_DIRECT = ("--noproxy", "*")  # what a client does that knows of no proxy
_DATAGRAM = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('203.0.113.10', 443))"
_PING = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
_BANNER = "import socket; s = socket.create_connection(('mail.demo.test', 25), 10); print(s.recv(99).decode().strip())"
_URLLIB = "import urllib.request as u; print(u.urlopen('http://api.demo.test/', timeout=30).read().decode().strip())"

ATTEMPTS = (
    Attempt("curl, an allowed host, knowing no proxy", _curl(*_DIRECT, "https://api.demo.test/"), True),
    Attempt("curl, the same through HTTPS_PROXY", _curl("https://api.demo.test/"), True),
    Attempt("curl, the same over IPv6", _curl(*_DIRECT, "-6", "https://api.demo.test/"), True),
    Attempt("Python urllib, plain HTTP", _python(_URLLIB), True),
    Attempt("a server that speaks first (port 25)", _python(_BANNER), True),
    Attempt("curl, a host that no rule names", _curl(*_DIRECT, "https://other.demo.test/"), False),
    Attempt(
        "the same, forcing the allowed host's address",
        _curl(*_DIRECT, "--resolve", f"other.demo.test:443:{world.SHARED[0]}", "https://other.demo.test/"),
        False,
    ),
    Attempt("curl, a bare address", _curl(*_DIRECT, "-f", f"http://{world.ELSEWHERE}/"), False),
    Attempt("curl, cloud metadata", _curl(*_DIRECT, "-f", "http://169.254.169.254/latest/"), False),
    Attempt("QUIC (a datagram to port 443)", _python(_DATAGRAM), False),
    Attempt("ping", _python(_PING), False),
)


def main() -> int:
    """0 when everything came out as it must."""
    if os.geteuid() != 0:
        sudo.start_again(["demo"], carry=False)
    with tempfile.TemporaryDirectory(prefix="nono-ebpf-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with Console(stderr=True).status("making test hosts and a sandbox …"):
            hosts = world.build(directory)
            try:
                results = _run(directory)
            finally:
                os.kill(hosts, 9)
                os.waitpid(hosts, 0)
        lines = (directory / "audit.ndjson").read_bytes().splitlines()
    return _show(results, lines)


def _run(directory: Path) -> list[dict[str, Any]]:
    log = directory / "audit.ndjson"
    # Root's own run, whoever called sudo: a checkout of theirs is no place to install from, but one to try.
    environment = {name: value for name, value in os.environ.items() if name not in sudo.VARIABLES}
    rules = [f"--allow-domain={rule}" for rule in ALLOWED]
    pins = [f"--resolve={host}:{address}" for host, addresses in world.HOSTS.items() for address in addresses]
    attempts = json.dumps([attempt.command for attempt in ATTEMPTS])
    script = (Path(__file__).parent / "attempts.py").read_text()
    command = [
        *(sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", str(NOBODY), *rules, *pins),
        *("--upstream-ca", str(directory / "ca.pem"), "--audit-log", str(log)),
        *("--", PYTHON, "-I", "-c", script, attempts),
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/", env=environment
    )
    if done.returncode != 0:
        raise SandboxError(f"the demo's sandbox failed: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _show(results: Sequence[dict[str, Any]], lines: Sequence[bytes]) -> int:
    records = [from_line(line) for line in lines]
    table = Table(title=f"allowed: {', '.join(ALLOWED)}", title_justify="left", box=None, pad_edge=False)
    for heading in ("tried in the sandbox", "", "what the client saw", "why"):
        table.add_column(heading)
    for attempt, result in zip(ATTEMPTS, results, strict=True):
        table.add_row(attempt.title, _verdict(attempt, result), _said(result), _why(result, records))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(f"\nof {len(lines)} audit records, the last {_AUDIT_LINES_SHOWN}:")
    for line in lines[-_AUDIT_LINES_SHOWN:]:
        console.print(Text(line.decode()), style="dim", soft_wrap=True)
    return (
        0
        if all((result["status"] == 0) == attempt.works for attempt, result in zip(ATTEMPTS, results, strict=True))
        else 1
    )


def _verdict(attempt: Attempt, result: dict[str, Any]) -> Text:
    worked = result["status"] == 0
    text = "let through" if worked else "refused"
    return (
        Text(text, "green" if worked else "red") if worked == attempt.works else Text(f"{text}!", "bold white on red")
    )


def _said(result: dict[str, Any]) -> Text:
    lines = str(result["said"]).splitlines() or ["?"]
    return Text(lines[-1][:60])


def _why(result: dict[str, Any], records: Sequence[Record]) -> Text:
    """The last denial of the attempt, else the rule that let it through."""
    during = [r for r in records if result["from_ms"] <= r.timestamp_unix_ms <= result["to_ms"]]
    denied = [record for record in during if record.decision == "deny"]
    allowed = [record for record in during if record.decision == "allow" and record.rule]
    if denied:
        return Text(denied[-1].reason or "denied")
    if allowed:
        return Text(f"rule {allowed[-1].rule}")
    return Text("the kernel itself: it takes a capability that the sandbox has not")
