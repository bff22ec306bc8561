"""What Landlock, seccomp and limits take from the command and from the proxy, and what is said where one is lacking."""

from __future__ import annotations

import json
import os
import pty
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit.checkout import opened
from kit.expect import missing
from kit.sandboxes import Sandbox
from landlockpy import abi_version

from nono_ebpf.sandbox.landlock import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.root, pytest.mark.kernel]

NOBODY = pwd.getpwnam("nobody")
PYTHON = "/usr/bin/python3"
PROGRAM = [sys.executable, "-I", "-m", "nono_ebpf"]
RUN = [*PROGRAM, "run", "--user", "nobody"]
AS_NOBODY = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "--"]
TIMEOUT_S = 120


def finish(command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(opened(command), text=True, timeout=TIMEOUT_S, check=False, cwd="/", **(streams | more))


def inside(script: str, *options: str, **more: Any) -> Any:
    """What `script` printed as JSON, run by Python in a sandbox made with `options`."""
    done = finish([*RUN, *options, "--", PYTHON, "-c", script], **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def need(feature: Feature) -> None:
    """Without it there is nothing to test, and `doctor` says so."""
    if not feature.here:
        missing(f"landlock-{feature.name.lower()}", f"Landlock has ABI {abi_version()}, {feature.abi} is needed")


# --- a kernel without Landlock

_WITHOUT_LANDLOCK = """
import errno, os, seccomp, sys
old = seccomp.SyscallFilter(seccomp.ALLOW)
for call in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
    old.add_rule(seccomp.ERRNO(errno.ENOSYS), call)
old.load()
os.execv(sys.argv[1], sys.argv[1:])
"""
WITHOUT_LANDLOCK = [sys.executable, "-I", "-c", _WITHOUT_LANDLOCK]


def test_what_the_kernel_lacks_is_said() -> None:
    """By `run -v` and by `doctor`, which still finds that sandboxes work; the sandbox itself runs."""
    done = finish([*WITHOUT_LANDLOCK, *RUN, "-v", "--", "true"])
    assert (done.returncode, "refuses nothing; not here: signals" in done.stderr) == (0, True), done.stderr
    doctor = finish([*WITHOUT_LANDLOCK, *PROGRAM, "doctor", "--json"])
    found = {each["name"]: each for each in json.loads(doctor.stdout)}
    assert {found[f"Landlock: {kind}"]["state"] for kind in ("ports", "scopes", "sockets")} == {"no"}
    assert found["Landlock: scopes"]["remedy"].startswith("Linux 6.12")
    assert doctor.returncode == 0


def test_what_was_asked_for_is_not_left_out(tmp_path: Path) -> None:
    """Ports that the kernel cannot judge: one line, exit 2, the command not started."""
    done = finish([*WITHOUT_LANDLOCK, *RUN, "--landlock-ports", "--", "touch", str(tmp_path / "started")])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--landlock-ports" in done.stderr
    assert "Linux 6.7" in done.stderr
    assert not list(tmp_path.iterdir())


_WITHOUT_USER_NAMESPACES = """
import errno, os, seccomp, sys
full = seccomp.SyscallFilter(seccomp.ALLOW)
full.add_rule(seccomp.ERRNO(errno.ENOSPC), "unshare", seccomp.Arg(0, seccomp.EQ, 0x10000000))
full.load()
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_machine_without_user_namespaces_is_told_so() -> None:
    """user.max_user_namespaces of zero reads as "no space left" otherwise."""
    done = finish([sys.executable, "-I", "-c", _WITHOUT_USER_NAMESPACES, *RUN, "--", "echo", "started"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert "user.max_user_namespaces" in done.stderr


# --- the command

_PORTS = """
import errno, json, socket
def told(attempt):
    with socket.socket() as sock:
        try:
            attempt(sock)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"
print(json.dumps({
    "listed": told(lambda sock: sock.connect(("203.0.113.1", 443))),
    "not listed": told(lambda sock: sock.connect(("203.0.113.1", 22))),
    "resolver": told(lambda sock: sock.connect(("203.0.113.1", 53))),
    "bind": told(lambda sock: sock.bind(("127.0.0.1", 8000))),
}))
"""


def test_landlock_judges_ports_when_told_to() -> None:
    """A port that no rule names is refused before any hook sees it, and so is a server inside."""
    need(Feature.PORTS)
    rules = ("--allow-domain", "api.example.com")
    assert inside(_PORTS, *rules) == dict.fromkeys(("listed", "not listed", "resolver", "bind"), "done")
    assert inside(_PORTS, *rules, "--landlock-ports") == {
        "listed": "done",
        "not listed": "EACCES",
        "resolver": "done",
        "bind": "EACCES",
    }


_REFUSED = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
numbers = {"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "open_by_handle_at": 304, "io_uring_setup": 425,
           "keyctl": 250, "add_key": 248, "request_key": 249}
def told(number):
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0)
    return errno.errorcode.get(ctypes.get_errno())
print(json.dumps({name: told(number) for name, number in numbers.items()}))
"""


def test_ways_into_the_kernel_are_refused() -> None:
    """What the filter refuses, whatever its arguments; outside most of them get as far as looking at those."""
    found = inside(_REFUSED)
    unknown = {name for name, outcome in found.items() if outcome == "ENOSYS"}
    assert unknown == {"io_uring_setup", "keyctl", "add_key", "request_key"}
    assert {outcome for name, outcome in found.items() if name not in unknown} == {"EPERM"}
    outside = json.loads(finish([*AS_NOBODY, PYTHON, "-c", _REFUSED]).stdout)
    assert outside["perf_event_open"] == "EFAULT"
    assert outside["keyctl"] != "ENOSYS"


# --- terminals

_TERMINALS = """
import errno, json, os, pty, sys
def told(path):
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
ours, theirs = pty.openpty()
print(json.dumps({"other": told(sys.argv[1]), "own": told(os.ttyname(theirs)), "known": os.listdir("/dev/pts")}))
"""


@pytest.fixture
def others_terminal() -> Iterator[str]:
    """A terminal of the account's, outside."""
    ours, theirs = pty.openpty()
    os.fchown(theirs, NOBODY.pw_uid, NOBODY.pw_gid)
    yield os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def test_other_terminals_of_the_account_are_out_of_sight(others_terminal: str) -> None:
    """Reading one would be its owner's typing, writing to it escape sequences. New ones can be made inside."""
    outside = finish([*AS_NOBODY, PYTHON, "-c", _TERMINALS, others_terminal])
    assert json.loads(outside.stdout)["other"] == "done"
    done = finish([*RUN, "--", PYTHON, "-c", _TERMINALS, others_terminal])
    found = json.loads(done.stdout)
    assert found["own"] == "done"
    assert sorted(found["known"]) == ["0", "ptmx"]
    assert found["other"] in {"ENOENT", "done"}  # done: its number is the new one's
    assert (found["other"] == "done") == (others_terminal == "/dev/pts/0")


_ON_A_TERMINAL = """
import os, pty, signal, subprocess, sys
# A shell's job: the bystander and nono-ebpf are one process group of one session, on one terminal.
pid, terminal = pty.fork()
if pid == 0:
    default = lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    bystander = subprocess.Popen(sys.argv[1].split("\\n"), preexec_fn=default)
    done = subprocess.run(sys.argv[2].split("\\n"))
    print("bystander", bystander.poll(), "command", done.returncode, flush=True)
    bystander.kill()
    os._exit(0)
said = b""
try:
    while more := os.read(terminal, 4096):
        said += more
except OSError:
    pass
os.waitpid(pid, 0)
sys.stdout.write(said.decode())
"""
_SIGNAL_THE_GROUP = "import os, signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN); os.kill(0, signal.SIGUSR1)"


def _group_is_signalled(before: Sequence[str]) -> str:
    """What became of a bystander of the same account when a command run by `before` signalled its process group."""
    bystander = [*AS_NOBODY, "sleep", "60"]
    command = [*before, PYTHON, "-c", _SIGNAL_THE_GROUP]
    arguments = ["\n".join(opened(bystander)), "\n".join(opened(command))]
    driver = "import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n" + _ON_A_TERMINAL
    said = finish([PYTHON, "-c", driver, *arguments]).stdout
    return next(line for line in said.splitlines() if line.startswith("bystander")).strip()


def test_on_a_terminal_the_callers_job_cannot_be_signalled() -> None:
    """The process group is the caller's there, so that Ctrl-C works; a signal to it stays inside."""
    need(Feature.SCOPES)
    assert _group_is_signalled(AS_NOBODY) == f"bystander -{10} command 0"
    assert _group_is_signalled([*RUN, "--"]) == "bystander None command 0"


# --- the proxy, broken into

BREAK_IN = Path(__file__).with_name("break_in.py")
# A supervisor as it is, whose proxy runs somebody else's code when it serves.
_BROKEN_INTO = """
import sys
from nono_ebpf.cli import main
from nono_ebpf.sandbox import proxy_process
proxy_process.PROGRAM = ("-c", sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""
_IN_THE_PROXY = f"""
import json, os, sys
scope = {{"__name__": "break_in"}}
exec(compile(open({str(BREAK_IN)!r}).read(), "break_in", "exec"), scope)
from nono_ebpf import proxy
until_told = proxy._until_told
async def serve(lifeline):
    os.write(2, b"broken into " + json.dumps(scope["attempts"]()).encode() + b"\\n")
    await until_told(lifeline)
proxy._until_told = serve
proxy.main()
"""
ALLOWED_TO_THE_PROXY = {"read /etc/hosts", "dial"}
# Harmless to an account that nothing confines: what the experiment is worth.
CONTROLS = {
    *("read the program", "read /proc", "list /", "write /tmp", "start a process", "new code", "memfd", "unix socket"),
    *("netlink", "listen", "bind TCP", "signal itself", "pidfd", "be traced", "dumpable", "change directory"),
}


def test_who_breaks_into_the_proxy_finds_nothing() -> None:
    """No file but the resolver's, no program, no process, no socket but TCP and UDP to dial with, no namespace."""
    control = json.loads(finish([*AS_NOBODY, PYTHON, str(BREAK_IN)]).stdout)
    assert {name for name in CONTROLS if control[name] != "done"} == set()
    done = finish([sys.executable, "-I", "-c", _BROKEN_INTO, _IN_THE_PROXY, "run", "--user", "nobody", "--", "true"])
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("broken into "))
    found = json.loads(line.removeprefix("broken into "))
    assert {name for name, outcome in found.items() if outcome == "done"} == ALLOWED_TO_THE_PROXY
    assert found.keys() > CONTROLS


def test_the_proxy_runs_with_nothing(tmp_path: Path) -> None:
    """As the kernel has it: an account of its own, no capability, no way to more, no core, bounded."""
    with subprocess.Popen(
        opened([*RUN, "--", "sh", "-c", "echo ready; cat"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        sandbox = Sandbox.of(process.pid)
        place = Path(f"/proc/{sandbox.proxy.pid}")
        status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
        limits = {line[:25].strip(): line[26:].split() for line in (place / "limits").read_text().splitlines()}
        owner = (place / "environ").stat().st_uid
        sandbox.close()
        process.communicate()
    assert {status[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"].strip()) == ("1", "2", "")
    assert all(61184 <= int(uid) <= 65519 for uid in status["Uid"].split())
    assert owner == 0  # not dumpable: nobody of its account may look
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert limits["Max processes"][:2] == ["64", "64"]
