"""Running nono-ebpf, or a bare command, on the test machine: its namespace, its resolver, its hosts file.

The runner gets a private mount namespace in which /etc/resolv.conf, /etc/hosts and /etc/nsswitch.conf are the
test machine's, so names resolve as on a real host.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import zone
from kit.namespaces import enter_command
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
TIMEOUT_S = patient(180)
_ETC = {
    "resolv.conf": f"nameserver {zone.DNS_V4}\noptions timeout:2 attempts:5\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n",
}
ROOT = Path(__file__).parents[2]
# What of it the sandboxed account is shown, each by itself: the checkout's own directory may be closed to it.
SHOWN = (".venv", "tests")
_ENTER = """
etc=$0 root=$1 shown=$2; shift 2
for file in $(ls "$etc"); do mount --bind "$etc/$file" "/etc/$file"; done
for name in $(ls -A "$shown"); do mount --bind "$root/$name" "$shown/$name"; done
exec "$@"
"""
_STEPS = """
import json, subprocess, sys
def step(command):
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=150)
    return [done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")]
print(json.dumps([step(command) for command in json.loads(sys.argv[1])]))
"""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """How one command of several ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Run:
    """How a command in a sandbox ended, and the audit log it left."""

    returncode: int
    stdout: str
    stderr: str
    records: tuple[Record, ...]

    def json(self) -> Any:
        """What the command printed, which must be one JSON text, else the test fails."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            raise AssertionError(f"no JSON from the command; {self!r}") from None

    def steps(self) -> list[Step]:
        """The results of `Machine.run_steps`."""
        return [Step(*each) for each in self.json()]

    def flows(self, decision: str, **facts: object) -> list[Record]:
        """The records with `decision` ("allow", "deny") in which every one of `facts` holds."""
        wanted = {"decision": decision, **facts}
        return [each for each in self.records if all(each.get(key) == value for key, value in wanted.items())]


class Machine:
    """Where nono-ebpf runs. `work` is a directory of this object's own, readable by everybody."""

    def __init__(self, netns: str, work: Path) -> None:
        self._netns, self._work = netns, work
        self._logs = itertools.count()
        self.home = work / "home"
        self.home.mkdir()
        self.home.chmod(0o1777)
        self._project = work / "project"
        for name in SHOWN:
            (self._project / name).mkdir(parents=True)
        self._etc = work / "etc"
        self._etc.mkdir()
        for file, text in _ETC.items():
            (self._etc / file).write_text(text)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What every command gets, however the tests themselves were started."""
        return {"PATH": PATH, "HOME": str(self.home), "LANG": "C.UTF-8", **(extra or {})}

    def enter(self, command: Sequence[str]) -> list[str]:
        """`command` so that it starts on the machine."""
        private = ["unshare", "--mount", "--propagation=private", "--"]
        places = [str(self._etc), str(ROOT), str(self._project)]
        return [*enter_command(self._netns), *private, "/bin/sh", "-ec", _ENTER, *places, *command]

    def bare(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` on the machine as root, with no sandbox: the control of an experiment."""
        return _finish(self._popen(command, env), timeout_s)

    def start(self, options: Sequence[str], command: Sequence[str], *, log: Path) -> subprocess.Popen[str]:
        """Start `nono-ebpf run --user nobody`. The caller ends the process and closes it."""
        return self._popen([*_program(), *options, "--audit-log", str(log), "--", *command], None)

    def run(
        self,
        options: Sequence[str],
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        proxy_env: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> Run:
        """Run `command` in a sandbox made with `options`.

        `proxy_env` False clears the environment inside (`env -i`): PATH, HOME and `env` are all there is.
        """
        log = self._work / f"audit-{next(self._logs)}.ndjson"
        wrapped = self._shown([*self._env_command(env or {}, proxy_env), *command])
        done = _finish(self.start(options, wrapped, log=log), timeout_s)
        return Run(done.returncode, done.stdout, done.stderr, read_records(log))

    def run_steps(
        self,
        options: Sequence[str],
        commands: Sequence[Sequence[str]],
        *,
        env: Mapping[str, str] | None = None,
        proxy_env: bool = True,
    ) -> Run:
        """Run several commands one after the other in one sandbox; `Run.steps` has their results."""
        driver = [sys.executable, "-c", _STEPS, json.dumps([self._shown(command) for command in commands])]
        return self.run(options, driver, env=env, proxy_env=proxy_env)

    def _shown(self, command: Sequence[str]) -> list[str]:
        """`command` with every path of this checkout as the sandboxed account may open it."""
        return [re.sub(f"^{re.escape(str(ROOT))}/", f"{self._project}/", word) for word in command]

    def _env_command(self, extra: Mapping[str, str], proxy_env: bool) -> list[str]:
        start = [] if proxy_env else ["-i", *_assignments(self.environment())]
        return ["env", *start, *_assignments(extra)]

    def _popen(self, command: Sequence[str], env: Mapping[str, str] | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.enter(command),
            cwd=self.home,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )


def _program() -> list[str]:
    return [sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", "nobody"]


def _assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def _finish(process: subprocess.Popen[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Wait for `process`. After `timeout_s` its whole group is killed and the test fails with its output."""
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"not done after {timeout_s} s; stdout {out!r}; stderr {err!r}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def read_records(log: Path) -> tuple[Record, ...]:
    """The records of an audit log, () when there is none. Of a line that is being written there is no record yet."""
    whole = log.read_text().rpartition("\n")[0] if log.exists() else ""
    return tuple(map(json.loads, whole.splitlines()))
