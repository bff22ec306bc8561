"""One hostile program that tries all it knows: nothing leaves, and no daemon outside does anything for it.

::

    outside                                       sandbox                         world
    daemons.py as root      /run/…/docker.sock    adversary.py  plain             what the rules permit, and
    daemons.py as nobody    /tmp/…  @abstract       … as root of a user           nothing else
    tmux, if there is one   /tmp/…                  namespace, with and without
    sleep, as nobody                                a network namespace
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import pytest
from kit import zone
from kit.account import AS_NOBODY, PYTHON, bystander, finish
from kit.namespaces import enter_command
from kit.patience import patient
from kit.sandboxes import eventually, settled

from nono_ebpf.kernel import cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kit.witness import Witness
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.slow, pytest.mark.alone]

HERE = Path(__file__).parent
DAEMONS = (HERE / "daemons.py").read_text()
MODES = ["plain", "root", "network"]
LEAST_TECHNIQUES = 60
TIMEOUT_S, PATIENCE_S = patient(400), int(patient(40))


@dataclass(frozen=True, slots=True)
class Bait:
    """What stands outside for the adversary to find."""

    canary: Path
    sockets: list[str]
    tmux: str
    pids: list[int]

    def canaries(self) -> list[str]:
        """What daemons were made to write, by whoever asked."""
        found = sorted(self.canary.parent.glob(f"{self.canary.name}*"))
        return [f"{path.name}: {path.read_text()}" for path in found]

    def forget(self) -> None:
        """Take the canaries away."""
        for path in self.canary.parent.glob(f"{self.canary.name}*"):
            path.unlink()


@pytest.fixture
def bait(place: Path) -> Iterator[Bait]:
    """Daemons of root's and of the account's, and an ordinary process of the account's."""
    with ExitStack() as stack:
        run = Path(tempfile.mkdtemp(prefix="nono-adversary-", dir="/run"))
        stack.callback(shutil.rmtree, run)
        run.chmod(0o755)
        canary = place / "canary"
        roots = [
            "stream",
            str(run / "docker.sock"),
            "datagram",
            str(run / "notify"),
            "stream",
            str(place / "roots.sock"),
        ]
        abstract = f"@nono-adversary-{os.getpid()}"
        accounts = ["stream", str(place / "bus"), "stream", str(place / "agent.1"), "datagram", str(place / "log")]
        accounts += ["seqpacket", str(place / "seq"), "stream", abstract, "datagram", f"{abstract}-log"]
        stack.enter_context(bystander(PYTHON, "-c", DAEMONS, f"{canary}-root", *roots))
        stack.enter_context(bystander(*AS_NOBODY, PYTHON, "-c", DAEMONS, f"{canary}-account", *accounts))
        victim = stack.enter_context(bystander(*AS_NOBODY, "sh", "-c", "echo ready; exec sleep 900"))
        tmux = str(place / "tmux")
        stack.callback(_stop_tmux, tmux, _start_tmux(tmux))
        yield Bait(canary, [*roots[1::2], *accounts[1::2], tmux], tmux, [victim.pid, os.getpid()])


def _start_tmux(path: str) -> int | None:
    if shutil.which("tmux") is None:
        return None
    env = {"PATH": "/usr/bin:/bin", "HOME": "/", "TERM": "dumb", "SHELL": "/bin/sh"}
    named = [*AS_NOBODY, "tmux", "-S", path]
    finish([*named, "-f", "/dev/null", "new-session", "-d", "sleep 900"], env=env)
    return int(finish([*named, "display-message", "-p", "#{pid}"], env=env).stdout)


def _stop_tmux(path: str, pid: int | None) -> None:
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        Path(path).unlink(missing_ok=True)


def _aim(bait: Bait) -> str:
    secret = dns.message.make_query("s3cret.exfil.example.net", "TXT").to_wire().hex()
    group = cgroup.hierarchy()
    return json.dumps(
        {
            "v4": zone.v4("db.example.com"),
            "v6": zone.v6("db.example.com"),
            "permitted": zone.v4("echo.example.com"),
            "tcp": zone.SUM_PORT,
            "udp": zone.SINK_UDP_PORT,
            "dns": zone.DNS_V4,
            "query": secret,
            "machine": zone.MACHINE_V4,
            "metadata": zone.METADATA_V4,
            "pids": bait.pids,
            "sockets": bait.sockets,
            "tmux": bait.tmux,
            "canary": str(bait.canary),
            "cgroups": [str(group), str(group / "nono-ebpf")],
            "patience_s": PATIENCE_S,
        }
    )


def _told(stdout: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line["outcome"] for line in lines}


def test_outside_the_adversary_succeeds(world: World, bait: Bait, witness: Witness) -> None:
    """The control: without a sandbox it connects, its datagrams arrive, and every daemon does as it is told."""
    env = {"PATH": "/usr/bin:/bin", "HOME": "/", "HTTP_PROXY": "http://127.0.0.1:9"}
    sources = bait.canary.parent / "sources"
    shutil.copytree(HERE, sources, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    command = [
        *enter_command(world.namespaces.world),
        *AS_NOBODY,
        PYTHON,
        str(sources / "adversary.py"),
        "plain",
        _aim(bait),
    ]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=env,
        cwd="/",
    )
    told = _told(done.stdout)
    assert len(told) > LEAST_TECHNIQUES, done.stderr
    assert told["the end"] == "done"
    assert eventually(lambda: {seen.service for seen in world.seen} >= {"sum", "udp", "dns"}), world.seen
    settled(lambda: len(world.seen))
    witness.forget()
    wanted = 3 if shutil.which("tmux") else 2
    assert eventually(lambda: len(bait.canaries()) >= wanted), bait.canaries()


@pytest.mark.bypass(
    "adversary", "pathname-sockets", "abstract-sockets", "unix-datagrams", "uncovered-mounts", "agents-of-the-account"
)
@pytest.mark.parametrize("mode", MODES)
def test_inside_it_gets_nowhere(world: World, bait: Bait, witness: Witness, mode: str) -> None:
    """As it is, as root of a user namespace, and with a network namespace as well: no frame and no arrival that the
    rules do not permit, and no daemon has been asked for anything.
    """
    witness.permit("echo.example.com", zone.SUM_PORT)
    rules = ["one.example.com", f"{zone.v4('echo.example.com')}:{zone.SUM_PORT}"]
    options = [word for rule in rules for word in ("--allow-domain", rule)]
    command = ["python3", str(HERE / "adversary.py"), mode, _aim(bait)]
    run = world.machine.run(options, command, timeout_s=TIMEOUT_S)
    told = _told(run.stdout)
    assert len(told) > LEAST_TECHNIQUES, run
    assert told["the end"] == "done", run
    if mode != "plain":
        assert told["user namespace"] in {"done", "EPERM", "ENOSPC"}
    raised = {name: outcome for name, outcome in told.items() if re.search("Traceback", str(outcome))}
    assert raised == {}
    assert bait.canaries() == []
    assert all(Path(f"/proc/{pid}").exists() for pid in bait.pids)
