"""The broker as a process: whose rights it has, what is in its memory, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from kit.account import AS_NOBODY, NOBODY, TIMEOUT_S, place
from kit.checkout import ROOT, opened
from kit.keyring import session
from kit.memory import occurrences
from kit.sandboxes import Victim, eventually, open_files

from nono_ebpf.errors import CredentialUnavailable, SandboxError
from nono_ebpf.relay.secrets import BrokeredCredentials
from nono_ebpf.sandbox.broker_process import BrokerProcess
from nono_ebpf.sandbox.user import User

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nono_ebpf.sandbox.broker_plan import BrokerReport

pytestmark = pytest.mark.root

__all__ = ["place"]

USER = User("nobody", NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,), "/")
# A supervisor: starts a broker, tells its pid, and waits. With "early": before the broker was told anything.
SUPERVISOR = """
import sys, time
from nono_ebpf.sandbox.broker_process import BrokerProcess
from nono_ebpf.sandbox.user import User
broker = BrokerProcess()
if "early" not in sys.argv:
    user = User("nobody", 65534, 65534, (65534,), "/")
    broker.serve({"a": "env://A"}, user, {"A": "x"}, as_account="account" in sys.argv)
print(broker.pid, flush=True)
time.sleep(300)
"""
# Asks for a credential through a broker whose program can no longer be read: PLACE is covered once it serves.
COVERED = """
import asyncio, json, subprocess, sys
from nono_ebpf.relay.secrets import BrokeredCredentials
from nono_ebpf.sandbox.broker_process import BrokerProcess
from nono_ebpf.sandbox.user import User
place, reference, environment = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
broker = BrokerProcess()
broker.serve({"a": reference}, User("nobody", 65534, 65534, (65534,), "/"), environment, as_account=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", place], check=True)
async def ask():
    print((await BrokeredCredentials(broker.proxy_end).get("a")).reveal().decode())
asyncio.run(ask())
broker.end()
"""


class Started(NamedTuple):
    """A broker that serves."""

    process: BrokerProcess
    report: BrokerReport

    def ask(self, *names: str) -> list[str]:
        """The secrets, or the words for why there is none, one after the other."""
        return asyncio.run(self._ask(names))

    async def _ask(self, names: Sequence[str]) -> list[str]:
        credentials = BrokeredCredentials(self.process.proxy_end)
        found = []
        for name in names:
            try:
                found.append((await credentials.get(name)).reveal().decode())
            except CredentialUnavailable as error:
                found.append(error.state)
        asyncio.get_running_loop().remove_reader(self.process.proxy_end.fileno())
        return found

    def status(self) -> dict[str, str]:
        """proc_pid_status(5)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@contextmanager
def started(
    references: Mapping[str, str], environment: Mapping[str, str] | None = None, *, as_account: bool = True
) -> Iterator[Started]:
    process = BrokerProcess()
    try:
        yield Started(process, process.serve(references, USER, environment or {}, as_account=as_account))
    finally:
        process.stop()
        process.end()


def keep(path: Path, content: str, owner: int = NOBODY.pw_uid) -> str:
    path.write_text(content)
    path.chmod(0o600)
    os.chown(path, owner, owner)
    return f"file://{path}"


def test_it_is_the_account_that_asked(place: Path) -> None:
    """Every id, no group of root's, no capability, no new privilege; what that account may not read, it may not."""
    references = {"mine": keep(place / "mine", "m"), "roots": keep(place / "roots", "r", owner=0)}
    with started(references) as broker:
        status = broker.status()
        assert broker.ask("mine", "roots") == ["m", "unreadable"]
        assert [state.availability for state in broker.report.states] == ["present", "waiting"]
    assert {*status["Uid"].split(), *status["Gid"].split(), *status["Groups"].split()} == {str(NOBODY.pw_uid)}
    assert {status[name] for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def test_when_root_asked_it_is_root(place: Path) -> None:
    """And takes root's files and the account's, but nobody else's."""
    references = {
        "mine": keep(place / "mine", "m"),
        "roots": keep(place / "roots", "r", owner=0),
        "other": keep(place / "other", "o", owner=4242),
    }
    with started(references, as_account=False) as broker:
        assert broker.status()["Uid"].split() == ["0"] * 4
        assert broker.ask("mine", "roots", "other") == ["m", "r", "not_private"]


def test_1password_may_gain_its_group() -> None:
    """With op:// alone no_new_privs is left out: its application answers an `op` that is set-gid only. Everything else
    is given up all the same.
    """
    with started({"a": "op://v/i/f"}) as broker:
        status = broker.status()
        assert (status["NoNewPrivs"], status["CapEff"], status["CapPrm"]) == ("0", "0" * 16, "0" * 16)
        assert status["Uid"].split() == [str(NOBODY.pw_uid)] * 4
        assert is_roots(broker.process.pid)


@pytest.mark.parametrize("as_account", [True, False])
def test_nobody_looks_into_it(as_account: bool) -> None:
    """Not dumpable, no core, no terminal, nothing open but its sockets."""
    with started({"a": "env://A"}, {"A": "x"}, as_account=as_account) as broker:
        pid = broker.process.pid
        assert is_roots(pid)
        assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text())
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        opened = sorted(
            re.sub(r"\d+", "", name) for name in open_files(pid) if not name.startswith(("pipe:", "/tmp", "/dev/pts"))
        )
        assert [name for name in opened if name not in {"/dev/null", "anon_inode:[eventpoll]"}] == ["socket:[]"] * 2


def is_roots(pid: int) -> bool:
    """Whether its /proc entries are root's, as those of a process are that may not be looked into. proc(5)."""
    return Path(f"/proc/{pid}/mem").stat().st_uid == 0


def test_a_variable_is_nowhere_but_in_its_pages() -> None:
    """Neither in arguments nor in an environment, and in memory once; none of the caller's other secrets at all."""
    value, other = secrets.token_hex(20), secrets.token_hex(20)
    with started({"a": "env://A"}, {"A": value, "OTHER": other}) as broker:
        pid = broker.process.pid
        assert broker.ask("a") == [value]
        for name in ("cmdline", "environ"):
            assert value.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        assert occurrences(pid, value.encode()) == 1
        assert occurrences(pid, other.encode()) == 0


def test_an_old_secret_is_gone_from_its_memory(place: Path) -> None:
    """As soon as the file has another, or cannot be used any more."""
    first, second = secrets.token_hex(20), secrets.token_hex(20)
    with started({"a": keep(place / "token", first)}) as broker:
        pid = broker.process.pid
        assert occurrences(pid, first.encode()) == 1
        keep(place / "token", second)
        assert broker.ask("a") == [second]
        assert [occurrences(pid, each.encode()) for each in (first, second)] == [0, 1]


def test_its_memory_is_locked(place: Path) -> None:
    """And it says so; as an account, RLIMIT_MEMLOCK has to suffice."""
    with started({"a": keep(place / "token", "x")}) as broker:
        assert broker.report.locked
        assert int(broker.status()["VmLck"].split()[0]) > 0


def test_it_ends_when_it_is_told_to() -> None:
    """By itself."""
    process = BrokerProcess()
    process.serve({}, USER, {}, as_account=True)
    process.stop()
    assert os.waitpid(process.pid, 0) == (process.pid, 0)
    process.ended(0)
    process.end()


def test_it_ends_with_the_proxy() -> None:
    """With whoever has the socket that it is asked over, killed at any moment, and not only with the supervisor."""
    process = BrokerProcess()
    process.serve({"a": "env://A"}, USER, {"A": "x"}, as_account=True)
    proxy = subprocess.Popen(["sleep", "300"], pass_fds=[process.proxy_end.fileno()])
    process.proxy_end.close()
    victim = Victim(process.pid)
    assert process.running
    proxy.kill()
    proxy.wait()
    assert victim.ended()
    victim.close()
    assert os.waitpid(process.pid, 0) == (process.pid, 0)
    process.ended(0)
    process.end()


@pytest.mark.parametrize("how", [("early",), ("account",), ()], ids=str)
def test_it_dies_with_the_supervisor(how: tuple[str, ...]) -> None:
    """At whatever moment that is killed."""
    supervisor = subprocess.Popen([sys.executable, "-I", "-c", SUPERVISOR, *how], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    broker = Victim(int(supervisor.stdout.readline()))
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert broker.ended()
    broker.close()


def test_a_broker_that_cannot_start_is_an_error() -> None:
    """Not a sandbox whose credentials never come."""
    process = BrokerProcess()
    os.kill(process.pid, 9)
    with pytest.raises(SandboxError):
        process.serve({"a": "env://A"}, USER, {"A": "x"}, as_account=True)
    process.end()


def test_a_program_dies_with_the_broker(place: Path) -> None:
    """Killed while a password manager runs, it leaves none of it behind."""
    programs = Path(tempfile.mkdtemp(prefix="nono-broker-", dir="/tmp"))
    try:
        programs.chmod(0o755)
        (programs / "op").write_text(f"#!/bin/sh\necho $$ > {place}/pid\nmv {place}/pid {place}/op\nexec sleep 300\n")
        (programs / "op").chmod(0o755)
        process = BrokerProcess()
        process.serve({"a": "op://v/i/f"}, USER, {"PATH": f"{programs}:/usr/bin:/bin"}, as_account=True)
        process.proxy_end.send(b"\x93\x01\x00\x00")
        assert eventually((place / "op").exists)
        program = Victim(int((place / "op").read_text()))
        process.end()
        assert program.ended()
        program.close()
    finally:
        shutil.rmtree(programs)


def test_a_keyring_is_asked_as_the_account(place: Path) -> None:
    """A real one, through the whole way; set meanwhile, it is there. Locked and missing are told apart."""
    with session(place, "unlocked") as environment:
        set_as_nobody(environment, "known", "value")
        with started({"known": "known", "unknown": "keyring://nono/unknown"}, environment) as broker:
            assert [state.availability for state in broker.report.states] == ["lazy", "lazy"]
            assert broker.ask("known", "unknown") == ["value", "missing"]
    with session(place, "locked") as environment, started({"known": "known"}, environment) as broker:
        assert broker.ask("known") == ["locked"]
    with started({"known": "known"}, environment) as broker:
        assert broker.ask("known") == ["no_keyring"]


def test_nothing_of_the_program_is_needed_later(place: Path) -> None:
    """The account may not be able to read the program: what a keyring needs has been imported before."""
    covered = Path(sys.prefix) if Path(sys.prefix).is_relative_to(ROOT) else ROOT
    with session(place, "unlocked") as environment:
        set_as_nobody(environment, "known", "value")
        script = [sys.executable, "-I", "-c", COVERED, str(covered), "known", json.dumps(environment)]
        private = ["unshare", "--mount", "--propagation=private", "--"]
        done = subprocess.run([*private, *script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert (done.stdout, done.stderr) == ("value\n", "")


def set_as_nobody(environment: dict[str, str], name: str, value: str) -> None:
    command = opened([*AS_NOBODY, sys.executable, "-I", "-m", "nono_ebpf", "credential", "set", name])
    subprocess.run(command, env=environment, input=value, text=True, check=True, cwd="/", capture_output=True)
