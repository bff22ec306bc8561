"""`nono-ebpf run` as a program that runs another: status, signals, terminal, privileges, view, bad input, clean-up."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.checkout import opened
from kit.expect import require
from kit.patience import patient
from kit.sandboxes import Sandbox, abandoned, eventually, name_of

from nono_ebpf.kernel import cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kit.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAM = [sys.executable, "-I", "-m", "nono_ebpf"]
RUN = [*PROGRAM, "run", "--user", "nobody"]
TIMEOUT_S = patient(180)


def run(
    *command: str, options: tuple[str, ...] = (), timeout: float = TIMEOUT_S, **more: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *options, "--", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd="/",
        **more,  # type: ignore[call-overload]  # any of its keywords
    )


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Of what a test has started; what others may have left is not its own."""
    known = abandoned()
    yield
    assert abandoned() <= known


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_exit_status_is_the_commands(script: str, status: int) -> None:
    """As a shell reports it, 128 + signal included."""
    assert run("sh", "-c", script).returncode == status


def test_a_command_that_does_not_exist_is_127() -> None:
    """One line that names it."""
    done = run("no-such-program")
    assert (done.returncode, done.stderr) == (127, "nono-ebpf: no-such-program: command not found\n")


def test_a_command_that_cannot_be_run_is_126() -> None:
    """One line with the reason."""
    done = run("/etc/passwd")
    assert (done.returncode, done.stderr) == (126, "nono-ebpf: /etc/passwd: Permission denied\n")


def test_stdin_stdout_and_stderr_are_the_commands() -> None:
    """Bytes pass through untouched, and nothing of ours is on stdout."""
    done = subprocess.run(
        [*RUN, "--", "sh", "-c", "cat; echo no >&2"],
        input=b"\0\xff",
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"\0\xff", b"no\n", 0)


def test_the_command_has_no_privilege() -> None:
    """The account asked for, no capability in any set, no way to gain one."""
    script = "id -u; id -g; grep -E '^(Cap|NoNewPrivs)' /proc/self/status"
    uid, gid, *status = run("sh", "-c", script).stdout.split("\n")
    assert (uid, gid) == ("65534", "65534")
    fields = dict(line.split(":\t") for line in status if line)
    assert fields.pop("NoNewPrivs") == "1"
    assert set(fields.values()) == {"0" * 16}
    assert len(fields) == 5


def test_inherited_descriptors_are_closed() -> None:
    """A socket of the caller's would be a way out that no hook sees."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = run("sh", "-c", "ls /proc/self/fd", pass_fds=[theirs.fileno()])
    assert done.stdout.split() == ["0", "1", "2", "3"]  # 3: ls reading the directory


def test_a_strict_umask_closes_nothing_of_the_view() -> None:
    """What we put into the sandbox is readable there, whatever the caller's umask; the command keeps that umask."""
    script = "umask; cat /etc/resolv.conf /etc/hosts >/dev/null && ls /run/nono-ebpf && touch /run/user/$(id -u)/x"
    done = run("sh", "-c", script, preexec_fn=lambda: os.umask(0o077))
    assert (done.returncode, done.stdout.split()) == (0, ["0077", "cgroup", "hosts", "resolv.conf"]), done.stderr


def test_host_processes_are_out_of_sight() -> None:
    """A pid namespace with a /proc of its own: nothing outside can be traced, signalled or read."""
    script = "import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()), os.getppid())"
    assert run("/usr/bin/python3", "-c", script).stdout.strip() == "[1, 2] 1"


@pytest.mark.parametrize("where", ["/tmp", "/run", "/var/tmp"])
def test_sockets_of_host_daemons_are_hidden(where: str) -> None:
    """Wherever they are; --allow-socket leaves one in sight."""
    path = f"{where}/nono-ebpf-test-{os.getpid()}.sock"
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r}); print('connected')"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(path)
        try:
            daemon.listen()
            Path(path).chmod(0o777)
            hidden = run("/usr/bin/python3", "-c", script)
            shown = run("/usr/bin/python3", "-c", script, options=("--allow-socket", path))
        finally:
            Path(path).unlink()
    assert re.search("ConnectionRefused|FileNotFound|PermissionError", hidden.stderr)
    assert hidden.returncode == 1
    assert (shown.stdout, shown.returncode) == ("connected\n", 0)


def test_a_daemon_that_restarts_stays_hidden() -> None:
    """Its new socket, made under the same name while the sandbox runs, does not appear in it."""
    path = Path(f"/run/nono-ebpf-test-{os.getpid()}.sock")
    script = f"echo ready; read line; test -S {path} && echo seen || echo hidden"

    def bind() -> socket.socket:
        daemon = socket.socket(socket.AF_UNIX)
        daemon.bind(str(path))
        daemon.listen()
        return daemon

    with bind() as first, _started("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        first.close()
        path.unlink()
        with bind():
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "hidden\n"
            assert process.wait(TIMEOUT_S) == 0
        path.unlink()


@contextmanager
def _started(*command: str, options: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*RUN, *options, "--", *command], text=True, cwd="/", **pipes) as process:
        try:
            yield process
        finally:
            process.kill() if process.poll() is None else None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1"])
def test_signals_are_passed_on(name: str) -> None:
    """What another process sends to us is meant for the command, which decides."""
    script = f"trap 'echo got {name}; exit 9' {name[3:]}; echo ready; while :; do sleep 0.05; done"
    with _started("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        assert process.stdout.readline() == f"got {name}\n"
        assert process.wait(TIMEOUT_S) == 9


class Terminal:
    """An interactive bash on a pseudo-terminal of its own."""

    def __init__(self) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execve(
                "/bin/bash",
                ["bash", "--norc", "--noprofile", "-i"],
                {"PATH": os.environ["PATH"], "PS1": "$ ", "TERM": "dumb"},
            )
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, text: str, timeout: float = TIMEOUT_S) -> None:
        end = time.monotonic() + timeout
        while text not in self._seen:
            ready, _, _ = select.select([self._fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come; there is {self._seen!r}"
            self._seen += os.read(self._fd, 4096).decode(errors="replace")
        self._seen = self._seen.partition(text)[2]

    def close(self) -> None:
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with suppress(ProcessLookupError):
                if os.getsid(pid) == self._pid:
                    os.kill(pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_the_terminal_interrupts_the_command_once(terminal: Terminal) -> None:
    """Ctrl-C reaches the command, which may handle it, and only once; its status comes back."""
    script = "trap 'n=$((n+1)); echo int$n' INT; echo rea''dy; until [ \"$n\" ]; do sleep 0.1; done"
    script += "; for i in 1 2 3 4 5 6; do sleep 0.1; done; echo total $n; exit 4"  # time for a second one
    terminal.type(f"{' '.join(RUN)} -- bash -c {json.dumps(script).replace('$', chr(92) + '$')}\n")
    terminal.expect("\nready")
    terminal.type("\x03")
    terminal.expect("int1")
    terminal.expect("total 1")
    terminal.type("echo status $?\n")
    terminal.expect("\nstatus 4")


def test_job_control_works(terminal: Terminal) -> None:
    """Ctrl-Z gives the shell back, fg goes on where it was."""
    terminal.type(f"{' '.join(RUN)} -- sh -c 'echo rea\"\"dy; cat'\n")
    terminal.expect("\nready")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect("$ ")
    terminal.type("fg\n")
    terminal.expect("cat'")
    terminal.type("hello\n")
    terminal.expect("hello\r\nhello")
    terminal.type("\x04")
    terminal.type("echo status $?\n")
    terminal.expect("\nstatus 0")


def test_an_interactive_shell_works_inside(terminal: Terminal) -> None:
    """It does job control of its own, and the terminal is ours again when it ends."""
    terminal.type(f"{' '.join(RUN)} -- bash --norc --noprofile -i\n")
    terminal.expect("$ ")
    terminal.expect("$ ")
    program = "import signal as s, time; s.signal(s.SIGCONT, lambda *_: print('o' + 'n'))"
    program += "; print('u' + 'p'); time.sleep(99)"
    terminal.type(f"/usr/bin/python3 -uc {shlex.quote(program)}\n")
    terminal.expect("up")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect("$ ")
    terminal.type("fg\n")
    terminal.expect("\non")
    terminal.type("\x03")
    terminal.expect("$ ")
    terminal.type("exit 3\n")
    terminal.expect("$ ")
    terminal.type("echo status $?\n")
    terminal.expect("\nstatus 3")


BAD = {
    "no command": (["--"], 2, "no command was given"),
    "unknown option": (["--nonsense", "--", "true"], 2, "unrecognized arguments: --nonsense"),
    "root": (["--user", "root", "--", "true"], 2, "never runs as root"),
    "no such account": (["--user", "nobody-of-that-name", "--", "true"], 2, "no account"),
    "bad host": (["--allow-domain", "exa mple.com", "--", "true"], 2, "exa mple.com"),
    "embedded wildcard": (["--allow-domain", "www*.com", "--", "true"], 2, "www*.com"),
    "bad port": (["--allow-domain", "example.com:99999", "--", "true"], 2, "99999"),
    "unknown preset": (["--allow-domain", "@pythn", "--", "true"], 2, "@python"),
    "no such profile": (["--profile", "/nonexistent.json", "--", "true"], 2, "No such file"),
    "bad resolve": (["--resolve", "example.com:nowhere", "--", "true"], 2, "NAME:ADDRESS"),
    "no such CA": (["--upstream-ca", "/nonexistent.pem", "--", "true"], 2, "No such file"),
    "not a CA": (["--upstream-ca", "/etc/hostname", "--", "true"], 2, "no PEM certificate"),
    "not a socket": (["--allow-socket", "/etc/passwd", "--", "true"], 2, "not a unix socket"),
    "audit log in no directory": (["--audit-log", "/nonexistent/log", "--", "true"], 2, "No such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_nothing_is_started(case: str) -> None:
    """What was wrong, exit 2, no traceback; `_nothing_is_left` sees to the rest."""
    options, status, text = BAD[case]
    done = subprocess.run([*RUN, *options], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == status
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_profiles_typo_is_named_with_the_nearest_key(tmp_path: Path) -> None:
    """Unknown keys are refused: an ignored rule would be a hole."""
    profile = tmp_path / "p.json"
    profile.write_text('{"network": {"allow_domian": ["example.com"]}}')
    done = run("true", options=("--profile", str(profile)))
    assert done.returncode == 2
    assert "allow_domian" in done.stderr
    assert "allow_domain" in done.stderr
    assert done.stderr.count("\n") == 1


def test_root_without_an_account_is_told_the_way_out() -> None:
    """uid 0 keeps owning the kernel's files even without capabilities."""
    environment = {name: value for name, value in os.environ.items() if name != "SUDO_UID"}
    done = subprocess.run([*PROGRAM, "run", "--", "true"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "--user NAME" in done.stderr


def _as_cgroup_v1_only(command: list[str]) -> list[str]:
    hide = f'umount -l {cgroup.hierarchy()} && exec "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-ec", hide, "sh", *command]


def test_a_machine_without_cgroup_v2_is_told_so() -> None:
    """Before anything is started."""
    done = subprocess.run(_as_cgroup_v1_only([*RUN, "--", "true"]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cgroup v2" in done.stderr


def test_a_machine_without_bcc_is_told_what_to_install() -> None:
    """PyPI's package of that name would not do."""
    hide = (
        "from nono_ebpf.kernel import loader; loader.bcc_is_installed = lambda: False;"
        "from nono_ebpf import cli; import sys; sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide, *RUN[4:], "--", "true"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "python3-bpfcc" in done.stderr


def test_programs_that_do_not_load_leave_nothing_half_attached() -> None:
    """Loading is all or nothing, and the error is one line."""
    broken = (
        "from nono_ebpf.kernel import loader, hooks; import dataclasses, sys;"
        "wrong = dataclasses.replace(loader.HOOKS[-1], attach_type=hooks.AttachType.SOCK_OPS);"
        "loader.HOOKS = (*loader.HOOKS[:-1], wrong);"
        "from nono_ebpf import cli; sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken, *RUN[4:], "--", "true"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "nono-ebpf doctor" in done.stderr


def test_a_kernel_that_is_too_old_is_told_so() -> None:
    """What was tried and refused is explained by the release, with exit status 2."""
    old = (
        "from nono_ebpf.kernel import loader, hooks; import dataclasses, sys; loader.MINIMUM = (99, 0);"
        "wrong = dataclasses.replace(loader.HOOKS[-1], attach_type=hooks.AttachType.SOCK_OPS);"
        "loader.HOOKS = (*loader.HOOKS[:-1], wrong); from nono_ebpf import cli; sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", old, *RUN[4:], "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "99.0 or newer" in done.stderr


def test_an_ordinary_user_without_sudo_is_told_so() -> None:
    """Attaching needs root, and the message says how to get there."""
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "PATH=/nonexistent"]
    command = opened([*unprivileged, *PROGRAM, "run", "--", "true"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "root" in done.stderr


def test_a_flood_of_refusals_is_bounded_in_the_log(tmp_path: Path) -> None:
    """A few hundred thousand datagrams to everywhere: a bounded number of records, and the rest is counted."""
    log = tmp_path / "audit.ndjson"
    program = (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for told in ('ready', 'half'):\n"
        " print(told, flush=True), input()\n"
        " for n in range(100_000):\n"
        "  try: s.sendto(b'', ('203.0.113.1', 1000 + n % 60000))\n  except OSError: pass"
    )
    with _started("/usr/bin/python3", "-c", program, options=("--audit-log", str(log))) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        sandbox = Sandbox.of(process.pid)
        sandbox.proxy.kill(signal.SIGSTOP)  # or it may be as fast as the flood, on a machine that favours it
        try:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "half\n"
        finally:
            sandbox.proxy.kill(signal.SIGCONT)
            sandbox.close()
        _, errors = process.communicate("\n", timeout=TIMEOUT_S)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert 100 <= len(records) <= 2 * 1025  # a window may end in between
    assert "came too fast to be recorded" in errors


def test_dry_run_checks_everything_and_starts_nothing() -> None:
    """It shows the rules with their sources."""
    done = run("touch", "/tmp/nono-ebpf-was-here", options=("--dry-run", "--allow-domain", "example.com:8443"))
    assert done.returncode == 0
    assert "example.com:8443" in done.stdout
    assert "--allow-domain" in done.stdout
    assert not Path("/tmp/nono-ebpf-was-here").exists()


def test_the_audit_log_follows_no_link_of_the_sandboxed_account(tmp_path: Path) -> None:
    """A link planted where the account may write must not lead root's pen to a file of root's."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    victim = tmp_path / "victim"
    victim.write_text("root's\n")
    victim.chmod(0o600)
    link = tmp_path / "audit.ndjson"
    link.symlink_to(victim)
    done = run("sh", "-c", "ping -c1 127.0.0.1", options=("--audit-log", str(link)))
    assert done.returncode == 2
    assert victim.read_text() == "root's\n"


@pytest.mark.alone  # another test's start would be a later one as well
def test_a_crashed_supervisors_sandbox_is_cleaned_up_by_the_next_start() -> None:
    """kill -9: the command dies with it, hooks and pins stand until a later start removes them."""
    for _ in range(5):  # somebody else's start, beside this test, is a later start as well
        with _started("sh", "-c", "echo ready; exec sleep 1000") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            name = name_of(process.pid)
            process.kill()
            assert process.stdout.read() == ""  # the command's end of the pipe is closed: it is gone
            process.wait()
        if len(left := {each for each in abandoned() if each.name == name}) == 3:
            break
    assert len(left) == 3
    assert run("true").returncode == 0
    assert eventually(lambda: not any(each.exists() for each in left))  # or somebody else's start is at it


def test_a_running_sandbox_is_not_taken_for_a_stale_one() -> None:
    """Two sandboxes at once, and starting the second leaves the first alone."""
    with _started("sh", "-c", "echo ready; read line; echo still here") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        assert run("true").returncode == 0
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "still here\n"
        assert process.wait(TIMEOUT_S) == 0


def test_an_ordinary_user_gets_there_through_sudo(tmp_path: Path) -> None:
    """The command runs as that user, with its environment, PATH, directory and umask; none of it in any argv."""
    require("sudo")
    sudoers = tmp_path / "sudoers"
    sudoers.write_text("Defaults env_reset\nDefaults secure_path=/usr/bin:/bin\nALL ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    allow = ["sh", "-ec", f'mount --bind {sudoers} /etc/sudoers; exec "$@"', "sh"]
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    settle = ["sh", "-c", 'umask 027; cd /var/tmp; exec "$@"', "sh"]
    script = 'echo "$(id -u) $MY_KEY $PATH $PWD $(umask)"; read line'
    command = opened([*allow, *become, *settle, *PROGRAM, "run", "--", "sh", "-c", script])
    environment = {"PATH": "/opt/agent/bin:/usr/bin:/bin", "MY_KEY": "s3cret"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "65534 s3cret /opt/agent/bin:/usr/bin:/bin /var/tmp 0027\n"
        lines = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
        process.stdin.write("\n")
    assert not [line for line in lines if b"s3cret" in line]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def test_the_sudo_flag_is_believed_from_sudo_alone() -> None:
    """Another process's environment cannot be asked for by naming its pid."""
    done = subprocess.run([*RUN, "--from-sudo", "1:022", "--", "env"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_denials_are_summed_up_at_the_end(machine: Machine) -> None:
    """What, by whom, and the option that would permit it: on stderr, after the command."""
    done = machine.run([], ["curl", "-sS", "--max-time", "90", "https://nowhere.test/"])
    assert "denied" in done.stderr
    assert "curl (pid " in done.stderr
    assert "--allow-domain nowhere.test" in done.stderr


@pytest.fixture
def login() -> Iterator[Path]:
    """A file with a login that the sandboxed account can read, outside."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o711)
        file = Path(directory, "login")
        file.write_text("alice:hunter2")
        file.chmod(0o600)
        os.chown(file, 65534, -1)
        yield file


def test_the_login_at_the_upstream_proxy_is_not_the_commands(login: Path) -> None:
    """Neither in its environment nor in the file; and no other proxy is left in its variables."""
    assert "hunter2" in run("cat", str(login)).stdout
    environment = {**os.environ, "ALL_PROXY": "http://bob:secret@squid.test:3128"}
    script = f"env; cat {login} /proc/*/environ /proc/*/cmdline"
    for reference, more in ((f"file://{login}", {}), ("env://PROXY_LOGIN", {"PROXY_LOGIN": "carol:hunter3"})):
        options = ("--upstream-proxy", "squid.test:3128", "--upstream-auth", reference)
        done = run("sh", "-c", script, options=options, env=environment | more)
        assert "HTTP_PROXY=http://nono:" in done.stdout
        assert not {"secret", "hunter3"} & set(re.findall(r"\w+", done.stdout + done.stderr))
        assert ("hunter2" in done.stdout) == (reference == "env://PROXY_LOGIN")  # where it is no secret of ours
