"""What Landlock, seccomp and limits take from the command and from the proxy, and what is said where one is lacking."""

from __future__ import annotations

import errno
import json
import os
import pty
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit.account import AS_NOBODY, CONNECT, NOBODY, PROGRAM, PYTHON, RUN
from kit.checkout import opened
from kit.expect import missing
from kit.sandboxes import Sandbox
from landlockpy import abi_version

import nono_ebpf
from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import bpffs, cgroup
from nono_ebpf.sandbox import state
from nono_ebpf.sandbox.landlock import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.root, pytest.mark.kernel]

TIMEOUT_S = 120


def finish(command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": "/"}
    return subprocess.run(opened(command), text=True, timeout=TIMEOUT_S, check=False, **(settings | more))


def inside(script: str, *options: str, **more: Any) -> Any:
    """What `script` printed as JSON, run by Python in a sandbox made with `options`."""
    done = finish([*RUN, *options, "--", PYTHON, "-c", script], **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def running(*command: str, account: str = "nobody", **more: Any) -> Iterator[tuple[subprocess.Popen[bytes], Sandbox]]:
    """`command`, which says "ready" and ends with its stdin, in a sandbox of that account; and that sandbox."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    start = [*PROGRAM, "run", "--user", account, "--", *command]
    with subprocess.Popen(opened(start), cwd="/", **(streams | more)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        sandbox = Sandbox.of(process.pid)
        yield process, sandbox
        sandbox.close()
        if process.stdin is not None:
            process.stdin.close()


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


def test_files_can_be_moved_and_linked_between_directories() -> None:
    """Whatever Landlock judges of them."""
    moves = "import os; os.mkdir('a'); os.mkdir('b'); open('a/x', 'w'); os.rename('a/x', 'b/y'); os.link('b/y', 'a/z')"
    script = f'cd "$(mktemp -d)" && {PYTHON} -c "{moves}"'
    done = finish([*RUN, "--", "sh", "-c", script])
    assert (done.returncode, done.stderr) == (0, "")


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
import errno, fcntl, json, os, pty, struct, sys, termios
def told(path):
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
ours, theirs = pty.openpty()
found = {"other": told(sys.argv[1]), "own": told(os.ttyname(theirs)), "known": os.listdir("/dev/pts")}
try:
    fcntl.ioctl(theirs, termios.TIOCSETD, struct.pack("i", 27))  # N_NULL
    found["discipline"] = "done"
except OSError as error:
    found["discipline"] = errno.errorcode[error.errno]
print(json.dumps(found))
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
    assert found["discipline"] == "EPERM"  # any other leaves the caller a terminal that neither reads nor writes
    assert sorted(found["known"]) == ["0", "ptmx"]
    assert found["other"] in {"ENOENT", "done"}  # done: its number is the new one's
    assert (found["other"] == "done") == (others_terminal == "/dev/pts/0")


_ON_A_TERMINAL = """
import os, pty, signal, subprocess, sys
# A shell's job: the bystander and nono-ebpf are one process group of one session, on one terminal.
pid, terminal = pty.fork()
if pid == 0:
    default = lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    size, words = int(sys.argv[1]), sys.argv[2:]
    bystander = subprocess.Popen(words[:size], stdout=subprocess.PIPE, preexec_fn=default)
    bystander.stdout.readline()
    done = subprocess.run(words[size:])
    bystander.send_signal(signal.SIGUSR2)  # of two deadly signals the one sent first decides what a process died of
    print("bystander", signal.Signals(-bystander.wait()).name, "command", done.returncode, flush=True)
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
    """What a bystander of the same account died of when a command run by `before` signalled its process group.

    SIGUSR1: of the command. SIGUSR2: of the one sent after the command had ended, so the command's never came.
    """
    bystander = [*AS_NOBODY, "sh", "-c", "echo ready; exec sleep 600"]
    command = [*before, PYTHON, "-c", _SIGNAL_THE_GROUP]
    arguments = [str(len(bystander)), *bystander, *command]
    driver = "import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n" + _ON_A_TERMINAL
    said = finish([PYTHON, "-c", driver, *arguments]).stdout
    return next(line for line in said.splitlines() if line.startswith("bystander")).strip()


def test_on_a_terminal_the_callers_job_cannot_be_signalled() -> None:
    """The process group is the caller's there, so that Ctrl-C works; a signal to it stays inside."""
    need(Feature.SCOPES)
    assert _group_is_signalled(AS_NOBODY) == "bystander SIGUSR1 command 0"
    assert _group_is_signalled([*RUN, "--"]) == "bystander SIGUSR2 command 0"


def test_the_proxy_cannot_read_the_terminal() -> None:
    """What is typed there later may be a password."""
    ours, theirs = pty.openpty()
    with running("sh", "-c", "echo ready; cat", stderr=theirs) as (_, sandbox):
        facts = dict(
            line.split(":", 1) for line in Path(f"/proc/{sandbox.proxy.pid}/fdinfo/2").read_text().splitlines()
        )
    os.close(ours)
    os.close(theirs)
    assert int(facts["flags"], 8) & os.O_ACCMODE == os.O_WRONLY


# --- what the account owns outside

_IN_ITS_GROUP = """
import errno, json, sys
def told(file):
    try:
        with open(f"{sys.argv[1]}/{file}", "w") as opened:
            opened.write("1")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
print(json.dumps([told("cgroup.freeze"), told("cgroup.kill")]))
"""


@pytest.fixture
def group_of_the_account() -> Iterator[Path]:
    """A cgroup such as a user's service manager has."""
    group = cgroup.hierarchy() / f"nono-test-{os.getpid()}"
    group.mkdir()
    for path in (group, *group.iterdir()):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    yield group
    cgroup.Cgroup(group).remove()  # which waits until the kernel has let go of who ended in it


def test_a_cgroup_of_the_account_can_be_neither_stopped_nor_killed(group_of_the_account: Path) -> None:
    """Its files are the account's, and a line into one of them ends processes outside."""
    with subprocess.Popen(["sleep", "300"]) as bystander:
        (group_of_the_account / "cgroup.procs").write_text(str(bystander.pid))
        arguments = [PYTHON, "-c", _IN_ITS_GROUP, str(group_of_the_account)]
        inside_it = json.loads(finish([*RUN, "--", *arguments]).stdout)
        assert bystander.poll() is None
        assert json.loads(finish([*AS_NOBODY, *arguments]).stdout) == ["done", "done"]
        assert bystander.wait(TIMEOUT_S) == -9
    assert set(inside_it) == {"ENOENT"}


def test_the_own_group_is_what_the_sandbox_sees_and_cannot_write() -> None:
    """Programs read their limits there."""
    script = f"cd {cgroup.hierarchy()}; cat cgroup.events; echo 1 >cgroup.freeze"
    done = finish([*RUN, "--", "sh", "-c", script])
    assert "populated 1" in done.stdout
    assert "Read-only file system" in done.stderr


def test_a_socket_is_hidden_under_its_other_names_too() -> None:
    """A bind mount of its directory, or of a part of /run, shows the same socket elsewhere."""
    place, run = Path(tempfile.mkdtemp(dir="/srv")), Path(tempfile.mkdtemp(dir="/run"))
    for directory in (place / "real", place / "alias", place / "part"):
        directory.mkdir()
    for directory in (place, run):
        directory.chmod(0o755)
    names = [place / "real/sock", run / "sock", place / "alias/sock", place / "part/sock"]
    setup = 'mount --bind $0/real $0/alias; mount --bind $1 $0/part; shift; exec "$@"'
    private = ["unshare", "--mount", "--propagation=private", "sh", "-ec", setup, str(place), str(run)]
    try:
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for listener, name in ((first, names[0]), (second, names[1])):
                listener.bind(str(name))
                name.chmod(0o666)
                listener.listen()
            ask = [PYTHON, "-c", CONNECT, *map(str, names)]
            found = json.loads(finish([*private, *RUN, "--", *ask]).stdout)
            assert json.loads(finish([*private, *AS_NOBODY, *ask]).stdout) == ["done"] * 4
        assert set(found) <= {"ECONNREFUSED", "ENOENT"}
    finally:
        shutil.rmtree(place)
        shutil.rmtree(run)


def test_a_directory_of_sockets_that_comes_later_is_hidden() -> None:
    """The first tmux of a boot makes its directory while the sandbox runs."""
    account = "games"  # of which no other test's sandbox is, whose directory could not be taken away
    directory = Path(f"/tmp/tmux-{pwd.getpwnam(account).pw_uid}")
    with suppress(OSError):  # left by a daemon of the account: nothing that comes later
        directory.rmdir()
    with running("sh", "-c", f"echo ready; cat; ls {directory}", account=account) as (process, _):
        (directory / "default").touch()
        process.stdin.close()
        listed = process.stdout.read()
    (directory / "default").unlink()
    assert listed == b""


def test_a_descriptor_above_the_limit_is_closed() -> None:
    """The limit may have been lowered since it was opened."""
    script = (
        "import fcntl, os, resource, sys\n"
        "os.set_inheritable(fcntl.fcntl(0, fcntl.F_DUPFD, 900), True)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    done = finish([sys.executable, "-c", script, *RUN, "--", "ls", "/proc/self/fd"])
    assert done.stdout.split() == ["0", "1", "2", "3"], done.stderr  # 3: ls reading the directory


DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm"}


def test_no_device_of_the_host_is_in_sight() -> None:
    """No keyboard to type with, no socket to the hypervisor, no file systems of a process's own."""
    script = "ls /dev; echo x > /dev/null && echo x > /dev/shm/x && head -c1 /dev/urandom >/dev/null"
    done = finish([*RUN, "--", "sh", "-c", script])
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) - {"mqueue"} == DEVICES


def test_a_device_can_be_left_in_sight() -> None:
    """As it is outside, permissions and all."""
    name = next(path for path in Path("/dev").iterdir() if path.is_char_device() and path.name not in DEVICES)
    done = finish([*RUN, "--allow-device", str(name), "--", "stat", "-c", "%t:%T %a", str(name)])
    assert done.stdout == finish(["stat", "-c", "%t:%T %a", str(name)]).stdout
    refused = finish([*RUN, "--allow-device", "/etc/passwd", "--", "true"])
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


_UNMASK = """
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
def told(flags):
    return "done" if libc.unshare(flags) == 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps([told(0x10000000), told(0x20000)]))
"""


def test_no_mask_can_be_taken_off_in_another_mount_namespace() -> None:
    """There the file below a mask can be renamed, and the mask is gone. User namespaces alone do no harm."""
    assert inside(_UNMASK) == ["done", "ENOSPC"]
    assert json.loads(finish([*AS_NOBODY, PYTHON, "-c", _UNMASK]).stdout) == ["done", "done"]


def test_a_directory_swapped_before_the_start_is_not_entered() -> None:
    """The working directory is held, not looked up again with root's rights."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    closed = Path(tempfile.mkdtemp(dir="/root"))
    (closed / "token").write_text("root's")
    work = place / "work"
    work.mkdir()
    swap = f'mv {work} {work}.moved && ln -s {closed} {work} && exec "$@"'
    try:
        # A shell keeps the directory it is in; what its name means has changed.
        done = finish(["sh", "-ec", f"cd {work}; {swap}", "sh", *RUN, "--", "sh", "-c", "pwd -P; cat token"])
    finally:
        shutil.rmtree(place)
        shutil.rmtree(closed)
    assert "root's" not in done.stdout
    assert str(closed) not in done.stdout


def test_a_covered_working_directory_is_found_again_or_left() -> None:
    """Below /run the sandbox has its own; a name that leads nowhere there leads to the root."""
    directory = Path(tempfile.mkdtemp(dir="/run"))
    try:
        done = finish([*RUN, "--", "pwd"], cwd=directory)
    finally:
        directory.rmdir()
    assert done.stdout == "/\n"


@contextmanager
def _pty_master() -> Iterator[int]:
    ours, theirs = pty.openpty()
    yield ours
    os.close(ours)
    os.close(theirs)


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    yield fd
    os.close(fd)


HANDLES = {
    "the end of a terminal where its user sits": _pty_master,
    "a process": lambda: _opened(os.pidfd_open(os.getpid())),
    "a namespace": lambda: _opened(os.open("/proc/self/ns/net", os.O_RDONLY)),
    "another process's memory": lambda: _opened(os.open("/proc/self/mem", os.O_RDWR)),
    "a cgroup": lambda: _opened(os.open(cgroup.hierarchy() / "cgroup.procs", os.O_RDWR)),
    "events": lambda: _opened(os.eventfd(0)),
}


@pytest.mark.parametrize("kind", HANDLES)
def test_a_stream_that_is_more_than_a_stream_is_refused(kind: str) -> None:
    """What a shell redirects to is a file, a pipe or a terminal."""
    with HANDLES[kind]() as fd:
        done = finish([*RUN, "--", "echo", "started"], stdin=fd)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "stdin: is no file, pipe or terminal" in done.stderr


# --- what root executes


def test_nothing_is_imported_from_the_working_directory() -> None:
    """It is the account's, and root would execute what it finds there."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    relative = [entry for entry in sys.path if entry and not entry.startswith("/")]
    directories = [place, *(place / entry for entry in relative), place / "__editable__.nono_ebpf.finder.__path_hook__"]
    for directory in directories:
        directory.mkdir(exist_ok=True)
        for module in ("sitecustomize", "msvcrt", "_winapi", "nono_ebpf", "seccomp", "bcc"):
            (directory / f"{module}.py").write_text("import os; os.write(2, b'imported from the working directory')")
    try:
        script = Path(sys.executable).with_name("nono-ebpf")
        program = [str(script)] if script.exists() else PROGRAM
        done = finish([*program, *RUN[4:], "--", "true"], cwd=place)
    finally:
        shutil.rmtree(place)
    assert (done.returncode, done.stderr) == (0, "")
    assert relative == []


def test_a_program_that_the_account_may_change_is_not_run() -> None:
    """The command would rewrite what root executes at the next run."""
    copy = Path(tempfile.mkdtemp(dir="/tmp"))
    copy.chmod(0o755)
    # Without what other interpreters are writing there just now.
    of_others = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(nono_ebpf.__file__).parent, copy / "nono_ebpf", symlinks=False, ignore=of_others)
    start = (
        f"import sys; sys.path.insert(0, {str(copy)!r}); from nono_ebpf.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-I", "-c", start, "run", "--user", "nobody", "--", "echo", "started"]
    try:
        (copy / "nono_ebpf" / "nowhere").symlink_to(copy / "missing" / "file")
        assert finish(command).stdout == "started\n"
        os.chown(copy / "nono_ebpf" / "cli.py", NOBODY.pw_uid, NOBODY.pw_gid)
        done = finish(command)
    finally:
        shutil.rmtree(copy)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "cli.py, which root executes" in done.stderr
    assert "make install" in done.stderr


def test_roots_pen_follows_no_link_at_all() -> None:
    """A link in the middle of the audit log's path leads where the account likes."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    closed = Path(tempfile.mkdtemp(dir="/root"))
    (place / "logs").symlink_to(closed)
    try:
        done = finish([*RUN, "--audit-log", str(place / "logs" / "audit"), "--", "true"])
        made = list(closed.iterdir())
    finally:
        shutil.rmtree(place)
        closed.rmdir()
    assert (done.returncode, done.stderr.count("\n"), made) == (2, 1, [])
    assert "no symbolic link is followed" in done.stderr


def test_a_pipe_that_nobody_reads_is_no_audit_log() -> None:
    """The account may have left one there, and opening it waits."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o777)
    os.mkfifo(place / "audit", 0o666)
    try:
        done = finish([*RUN, "--audit-log", str(place / "audit"), "--", "true"])
    finally:
        shutil.rmtree(place)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--audit-log" in done.stderr


def test_nobody_else_can_keep_sandboxes_from_starting() -> None:
    """Who may open the directory of the sandboxes may lock it."""
    assert finish([*RUN, "--", "true"]).returncode == 0
    locked = finish([*AS_NOBODY, "flock", "--nonblock", str(state.STATE), "true"])
    assert "Permission denied" in locked.stderr


def test_a_crash_starts_no_helper_outside() -> None:
    """systemd-coredump and its like run as root on the memory of what crashed; a limit of one byte prevents that."""
    limit = finish([*RUN, "--", "sh", "-c", "ulimit -Hc"]).stdout.strip()
    pipe = Path("/proc/sys/kernel/core_pattern").read_bytes().startswith(b"|")
    outside = finish(["sh", "-c", "ulimit -Hc"]).stdout.strip()
    assert limit == ("0" if pipe else outside)  # in blocks of 512 bytes, rounded down


def test_what_cannot_be_cleaned_up_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process of a crashed sandbox that the kernel cannot end: the next start says so and goes on."""
    # Where no other start looks, which would clean up before us.
    monkeypatch.setattr(state, "STATE", tmp_path / "sandboxes")
    monkeypatch.setattr(state, "GROUP", f"nono-test-{os.getpid()}-crashed")
    monkeypatch.setattr(bpffs, "PINS", bpffs.PINS.with_name(f"nono_test_{os.getpid()}"))
    crashed = state.create()
    os.close(crashed.lock)
    refused = KernelError("empty the cgroup", errno.EBUSY)
    with monkeypatch.context() as patched:
        patched.setattr(state.Sandbox, "remove", lambda _self: (_ for _ in ()).throw(refused))
        assert state.remove_stale() == [f"{crashed.id}: {refused}"]
    assert state.remove_stale() == []
    assert not crashed.directory.exists()


# --- the proxy, broken into

BREAK_IN = Path(__file__).with_name("break_in.py")
# A supervisor as it is, whose proxy runs somebody else's code when it serves; the command waits until it has.
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
exec({BREAK_IN.read_text()!r}, scope)
from nono_ebpf.sandbox import handover
ready = handover.answer
def serve(lifeline, certificate):
    os.write(2, b"broken into " + json.dumps(scope["attempts"]()).encode() + b"\\n")
    ready(lifeline, certificate)
handover.answer = serve
from nono_ebpf import proxy
proxy.main()
"""
ALLOWED_TO_THE_PROXY = {"read /etc/hosts", "dial"}
# Harmless to an account that nothing confines: what the experiment is worth.
CONTROLS = {
    *("read the program", "read /proc", "list /", "write /tmp", "start a process", "new code", "memfd", "unix socket"),
    *("open without reading", "leave append mode", "a pair of datagrams"),
    *("netlink", "listen", "bind TCP", "signal itself", "pidfd", "be traced", "dumpable", "change directory"),
}


def test_who_breaks_into_the_proxy_finds_nothing() -> None:
    """No file but the resolver's, no program, no process, no socket but TCP and UDP to dial with, no namespace."""
    control = json.loads(finish([*AS_NOBODY, PYTHON, "-c", BREAK_IN.read_text()]).stdout)
    assert {name for name in CONTROLS if control[name] != "done"} == set()
    done = finish([sys.executable, "-I", "-c", _BROKEN_INTO, _IN_THE_PROXY, "run", "--user", "nobody", "--", "true"])
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("broken into "))
    found = json.loads(line.removeprefix("broken into "))
    without_landlock = set() if Feature.PORTS.here else {"bind TCP"}
    assert {name for name, outcome in found.items() if outcome == "done"} == ALLOWED_TO_THE_PROXY | without_landlock
    assert found.keys() > CONTROLS


def test_the_proxy_runs_with_nothing() -> None:
    """As the kernel has it: an account of its own, no capability, no way to more, no core, bounded."""
    with running("sh", "-c", "echo ready; cat") as (_, sandbox):
        place = Path(f"/proc/{sandbox.proxy.pid}")
        status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
        limits = {line[:25].strip(): line[26:].split() for line in (place / "limits").read_text().splitlines()}
        owner = (place / "environ").stat().st_uid
    assert {status[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"].strip()) == ("1", "2", "")
    assert all(61184 <= int(uid) <= 65519 for uid in status["Uid"].split())
    assert owner == 0  # not dumpable: nobody of its account may look
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert limits["Max processes"][:2] == ["64", "64"]
    assert int(limits["Max data size"][1]) <= 1 << 30
    assert int(limits["Max open files"][1]) <= 40960
