"""Ways out of a sandbox, each tried for real.

What can be tried outside as the same account is tried there first: an attack that fails everywhere would prove nothing.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit.expect import missing, require
from kit.machine import read_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

NOBODY = pwd.getpwnam("nobody")
PYTHON = "/usr/bin/python3"
PROGRAM = [sys.executable, "-I", "-m", "nono_ebpf"]
RUN = [*PROGRAM, "run", "--user", "nobody"]
AS_NOBODY = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "--"]
# Both kinds of run: the control of an experiment, and the experiment.
OUTSIDE, INSIDE = AS_NOBODY, [*RUN, "--"]
TIMEOUT_S = 60
STARTED = "started"


def finish(command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` without a terminal's input, in a directory that everybody may be in."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, text=True, timeout=TIMEOUT_S, check=False, cwd="/", **(streams | more))


def report(where: Sequence[str], script: str, *arguments: str, **more: Any) -> Any:
    """What `script`, run by Python OUTSIDE or INSIDE, printed as JSON."""
    done = finish([*where, PYTHON, "-c", script, *arguments], **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_refused(done: subprocess.CompletedProcess[str], text: str) -> None:
    """A mistake of the caller's: one line that has `text` in it, exit 2, the command not started."""
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert text in done.stderr
    assert STARTED not in (done.stdout or "")


@contextmanager
def directory_of_nobody(parent: str) -> Iterator[Path]:
    """A directory that the sandboxed account owns and everybody may enter."""
    made = Path(tempfile.mkdtemp(prefix="nono-escape-", dir=parent))
    try:
        made.chmod(0o755)
        os.chown(made, NOBODY.pw_uid, NOBODY.pw_gid)
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def place() -> Iterator[Path]:
    """Such a directory, in /tmp itself: pytest's own are closed to the account."""
    with directory_of_nobody("/tmp") as made:
        yield made


@contextmanager
def bystander(*command: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process outside that has said "ready", and that is killed in the end."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd="/", **pipes, **more) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# --- processes and namespaces outside

_BYSTANDER = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: where Yama rules, anybody may trace it
kept, given = socket.socketpair()
channel, secret = socket.socket(fileno=int(sys.argv[1])), socket.socket()
socket.send_fds(channel, [b"x"], [given.fileno()])
given.close()
print("ready", flush=True)
channel.recv(1)
"""

_ROB = """
import ctypes, errno, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
def told(result):
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def traced(request, pid):
    result = told(libc.ptrace(request, pid, None, None))
    if result == "done":
        if request == 16:
            os.waitpid(pid, 0x40000000)
        else:
            libc.ptrace(0x4207, pid, None, None)
            os.waitpid(pid, 0x40000000)
        libc.ptrace(17, pid, None, None)
    return result
try:
    answer = socket.socket(fileno=0).getsockopt(socket.SOL_SOCKET, 77, 4)  # SO_PEERPIDFD
except OSError as error:
    print(json.dumps({"peerpidfd": errno.errorcode[error.errno]}))
    sys.exit()
pidfd, pid = struct.unpack("i", answer)[0], int(sys.argv[1])
print(json.dumps({
    "peerpidfd": "done",
    "getfd": sorted({told(libc.syscall(438, pidfd, fd, 0)) for fd in range(8)}),
    "signal": told(libc.syscall(424, pidfd, 0, None, 0)),
    "net of it": told(libc.ioctl(pidfd, 0xFF04, 0)),  # PIDFD_GET_NET_NAMESPACE
    "user of it": told(libc.ioctl(pidfd, 0xFF09, 0)),  # PIDFD_GET_USER_NAMESPACE
    "attach": traced(16, pid),
    "seize": traced(0x4206, pid),
    "attach to pid 1": told(libc.ptrace(16, 1, None, None)),
    "seize pid 1": told(libc.ptrace(0x4206, 1, None, None)),
}))
"""


@contextmanager
def _stdio_of_a_bystander() -> Iterator[tuple[int, int]]:
    """The pid of a process of the same account, and an end of a socket pair of its making."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*AS_NOBODY, PYTHON, "-c", _BYSTANDER, str(theirs.fileno())]
        with bystander(*command, pass_fds=[theirs.fileno()]) as process:
            _, (given,), _, _ = socket.recv_fds(ours, 1, 1)
            try:
                yield process.pid, given
            finally:
                os.close(given)


def test_a_process_outside_can_be_neither_robbed_nor_traced() -> None:
    """Be it of the same account, and its pidfd at hand: no socket of it can be taken (pidfd_getfd), no namespace of it
    be opened, no signal be sent, and its number is nobody's. Nor can the sandbox's own pid 1 be traced.
    """
    with _stdio_of_a_bystander() as (pid, stdin):
        outside = report(OUTSIDE, _ROB, str(pid), stdin=stdin)
        if outside["peerpidfd"] != "done":
            missing("peerpidfd", "the kernel has no SO_PEERPIDFD (6.5)")
        inside = report(INSIDE, _ROB, str(pid), stdin=stdin)
    assert "done" in outside["getfd"]
    assert (outside["signal"], outside["attach"], outside["seize"]) == ("done", "done", "done")
    assert inside.pop("peerpidfd") == "done"
    assert inside.pop("getfd") == ["EPERM"]
    assert (inside.pop("attach"), inside.pop("seize")) == ("ESRCH", "ESRCH")
    assert (inside.pop("attach to pid 1"), inside.pop("seize pid 1")) == ("EPERM", "EPERM")
    assert inside.pop("signal") in {"EINVAL", "EPERM"}
    assert "done" not in inside.values()


_OPEN_HANDLES = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def told(handle):
    fd = libc.open_by_handle_at(-10003, bytes.fromhex(handle), os.O_RDONLY)  # FD_NSFS_ROOT
    return "done" if fd >= 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps([told(handle) for handle in sys.argv[1:]]))
"""
_AT_EMPTY_PATH = 0x1000
_HANDLE_BYTES = 128  # MAX_HANDLE_SZ


def _handle(path: Path) -> bytes | None:
    """The struct file_handle of `path`, None where its file system has none. name_to_handle_at(2)."""
    buffer = ctypes.create_string_buffer(_HANDLE_BYTES.to_bytes(4, sys.byteorder), 8 + _HANDLE_BYTES)
    libc, mount_id, fd = ctypes.CDLL(None, use_errno=True), ctypes.c_int(), os.open(path, os.O_RDONLY)
    try:
        failed = libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH)
    finally:
        os.close(fd)
    return None if failed else buffer.raw[: 8 + int.from_bytes(buffer.raw[:4], sys.byteorder)]


def test_a_namespace_outside_cannot_be_opened_by_its_handle() -> None:
    """Handles of namespaces can be guessed: the account's own containers must stay closed to the sandbox."""
    with bystander(*AS_NOBODY, "unshare", "--user", "--net", "sh", "-c", "echo ready; exec sleep 300") as process:
        handles = [_handle(Path(f"/proc/{process.pid}/ns/{kind}")) for kind in ("net", "user")]
        known = [handle.hex() for handle in handles if handle is not None]
        if not known or report(OUTSIDE, _OPEN_HANDLES, *known) != ["done", "done"]:
            missing("nsfs-handles", "the kernel opens no namespace by handle (6.18)")
        found = report(INSIDE, _OPEN_HANDLES, *known)
    assert "done" not in found
    assert set(found) <= {"ESTALE", "EPERM"}


# --- standard streams


@contextmanager
def _tcp_connected() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        yield client.fileno()


@contextmanager
def _bare_socket(family: int, kind: int) -> Iterator[int]:
    with socket.socket(family, kind) as bare:
        yield bare.fileno()


@contextmanager
def _datagram_pair() -> Iterator[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield theirs.fileno()


@contextmanager
def _directory() -> Iterator[int]:
    opened = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)


BAD_STREAMS = {
    "TCP, connected": (_tcp_connected, "network socket"),
    "TCP, not connected": (lambda: _bare_socket(socket.AF_INET, socket.SOCK_STREAM), "network socket"),
    "TCP over IPv6, not connected": (lambda: _bare_socket(socket.AF_INET6, socket.SOCK_STREAM), "network socket"),
    "UDP": (lambda: _bare_socket(socket.AF_INET, socket.SOCK_DGRAM), "network socket"),
    "unix datagrams": (_datagram_pair, "network socket"),
    "unix stream, not connected": (lambda: _bare_socket(socket.AF_UNIX, socket.SOCK_STREAM), "network socket"),
}


@pytest.mark.parametrize("name", ["stdin", "stdout"])
@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_a_stream_that_leads_out_is_refused(kind: str, name: str, place: Path) -> None:
    """A socket made outside can be turned to any address past every hook."""
    make, text = BAD_STREAMS[kind]
    with make() as fd:
        done = finish([*INSIDE, "touch", str(place / STARTED)], **{name: fd})
    assert not (place / STARTED).exists()
    assert_refused(done, text)


@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_a_stderr_that_leads_out_is_refused(kind: str, place: Path) -> None:
    """As the other two are; nobody can be told why."""
    with BAD_STREAMS[kind][0]() as fd:
        done = finish([*INSIDE, "touch", str(place / STARTED)], stderr=fd)
    assert not (place / STARTED).exists()
    assert done.returncode in {2, 120}  # 120: Python's, for a stream that takes no writing
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_directory_is_no_stream(name: str, place: Path) -> None:
    """It would lead to what is hidden (`/proc/self/fd/0/docker.sock`). Python itself ends at one, before we do."""
    with _directory() as fd:
        done = finish([*INSIDE, "touch", str(place / STARTED)], **{name: fd})
    assert not (place / STARTED).exists()
    assert done.returncode not in {0, 126, 127}
    assert name == "stderr" or "directory" in done.stderr


@pytest.mark.parametrize(("name", "closing"), [("stdin", "<&-"), ("stdout", ">&-")])
def test_a_closed_stream_is_refused(name: str, closing: str, place: Path) -> None:
    """Whatever is opened next would take its place."""
    done = finish(["sh", "-c", f'exec "$@" {closing}', "sh", *INSIDE, "touch", str(place / STARTED)])
    assert not (place / STARTED).exists()
    assert_refused(done, f"{name}: is closed")


def test_a_connected_unix_stream_is_a_fine_stdin() -> None:
    """It cannot be turned elsewhere, and editors start programs with one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"hello")
        ours.shutdown(socket.SHUT_WR)
        done = finish([*INSIDE, "cat"], stdin=theirs)
    assert (done.stdout, done.stderr, done.returncode) == ("hello", "", 0)


# --- sockets of the host's daemons

_DAEMON = """
import os, signal, socket, sys
daemons = []
for how, path in zip(sys.argv[1::2], sys.argv[2::2]):
    os.chdir(os.path.dirname(path))
    name = {"relative": os.path.basename(path), "linked": path + ".first"}.get(how, path)
    daemons.append(socket.socket(socket.AF_UNIX))
    daemons[-1].bind(name)
    daemons[-1].listen()
    if how == "linked":
        os.link(name, path)
        os.unlink(name)
print("ready", flush=True)
signal.pause()
"""

_CONNECT = """
import errno, json, socket, sys
def told(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"
print(json.dumps([told(path) for path in sys.argv[1:]]))
"""


def _assert_hidden(paths: Sequence[Path], prefix: Sequence[str] = ()) -> None:
    """The account can connect to all of them, and to none from inside.

    The control comes last: a connection that waits to be accepted is in /proc/net/unix with the socket's path.
    """
    names = [str(path) for path in paths]
    found = report([*prefix, *INSIDE], _CONNECT, *names)
    assert report([*prefix, *OUTSIDE], _CONNECT, *names) == ["done"] * len(names)
    assert set(found) <= {"ECONNREFUSED", "ENOENT", "EACCES"}, dict(zip(names, found, strict=True))


def test_a_hosts_socket_is_hidden_however_it_came_by_its_name(place: Path) -> None:
    """Bound by a relative path, linked to another name afterwards, or with a line feed in its path: /proc/net/unix has
    not, or not rightly, where such a one lies.
    """
    sockets = {"plain": "plain", "relative": "relative", "linked": "linked", "newline": "new\nline"}
    paths = [place / name for name in sockets.values()]
    arguments = [text for how, path in zip(sockets, paths, strict=True) for text in (how, str(path))]
    with bystander(*AS_NOBODY, PYTHON, "-c", _DAEMON, *arguments):
        _assert_hidden(paths)


def test_a_socket_of_another_network_namespace_is_hidden(place: Path) -> None:
    """A container's, or a service's with a private network: it is in no list of ours, three levels down in /tmp too."""
    deep = place / "two" / "three"
    deep.mkdir(parents=True)
    for directory in (place / "two", deep):
        os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
    paths = [place / "here", deep / "there"]
    arguments = [text for path in paths for text in ("absolute", str(path))]
    with bystander("unshare", "--net", *AS_NOBODY, PYTHON, "-c", _DAEMON, *arguments):
        _assert_hidden(paths)


def test_a_socket_in_the_accounts_home_is_hidden(place: Path) -> None:
    """There too, when it is bound by a relative path or in another network namespace."""
    with directory_of_nobody("/var/lib") as home:
        passwd = place / "passwd"
        line = f"nobody:x:{NOBODY.pw_uid}:{NOBODY.pw_gid}::{home}:/bin/sh"
        passwd.write_text(re.sub("^nobody:.*$", line, Path("/etc/passwd").read_text(), flags=re.MULTILINE))
        (home / ".cache").mkdir()
        os.chown(home / ".cache", NOBODY.pw_uid, NOBODY.pw_gid)
        paths = [home / "relative", home / ".cache" / "deeper"]
        arguments = [text for path in paths for text in ("relative", str(path))]
        with bystander("unshare", "--net", *AS_NOBODY, PYTHON, "-c", _DAEMON, *arguments):
            _assert_hidden(paths, _with_file(passwd, "/etc/passwd"))


def _with_file(source: Path, target: str) -> list[str]:
    """What to put before a command that is to see `source` at `target`."""
    bind = 'mount --bind "$0" "$1"; shift; exec "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-ec", bind, str(source), target]


@pytest.fixture
def roots_socket(place: Path) -> Iterator[Path]:
    """A socket of root's that everybody may connect to, in a directory of root's that everybody may enter."""
    private = place / "root"
    private.mkdir()
    private.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(private / "socket"))
        daemon.listen()
        (private / "socket").chmod(0o666)
        yield private / "socket"


@pytest.mark.parametrize("closed", ["socket", "directory"])
def test_a_socket_closed_to_the_account_cannot_be_allowed(roots_socket: Path, closed: str) -> None:
    """--allow-socket shows what the account could reach anyway; it opens nothing, be the way to it or itself closed."""
    allowed = [*RUN, "--allow-socket", str(roots_socket), "--"]
    assert report(allowed, _CONNECT, str(roots_socket)) == ["done"]
    if closed == "socket":
        roots_socket.chmod(0o600)
    else:
        roots_socket.parent.chmod(0o700)
    assert report(OUTSIDE, _CONNECT, str(roots_socket)) == ["EACCES"]
    done = finish([*allowed, "echo", STARTED])
    assert_refused(done, "may not connect" if closed == "socket" else "Permission denied")


# --- keys

_WITH_A_KEY = """
import ctypes, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, request_key, keyctl = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]
os.setresuid(int(sys.argv[1]), int(sys.argv[1]), 0)
ring = libc.syscall(keyctl, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
key = libc.syscall(add_key, b"user", b"nono-escape", b"s3cret", ctypes.c_size_t(6), -3)
if min(ring, key) < 0:
    sys.exit(str(ctypes.get_errno()))
os.setresuid(0, 0, 0)
os.execvp(sys.argv[2], [*sys.argv[2:], str(add_key), str(request_key), str(keyctl), str(ring), str(key)])
"""

_READ_KEYS = """
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, request_key, keyctl, ring, key = map(int, sys.argv[1:])
READ, SEARCH, LINK, DESCRIBE = 11, 10, 8, 6
def call(number, *arguments):
    return libc.syscall(number, *arguments)
def payload(serial):
    buffer = ctypes.create_string_buffer(99)
    length = call(keyctl, READ, serial, buffer, 99)
    return buffer.raw[:length].decode() if length >= 0 else failure()
def failure():
    return errno.errorcode[ctypes.get_errno()].replace("EDEADLOCK", "EDEADLK")
def told(serial):
    return payload(serial) if serial >= 0 else failure()
print(json.dumps({
    "searched": told(call(keyctl, SEARCH, -3, b"user", b"nono-escape", 0)),
    "requested": told(call(request_key, b"user", b"nono-escape", None, 0)),
    "read": payload(key),
    "key linked": told(call(keyctl, LINK, key, -3) or key),
    "ring linked": told(call(keyctl, LINK, ring, -3) or key),
}))
"""


def test_the_callers_keys_stay_outside() -> None:
    """Tickets and tokens of the caller: neither found, nor read or linked by a number that is known."""
    with_key = [PYTHON, "-c", _WITH_A_KEY, str(NOBODY.pw_uid)]
    done = finish([*with_key, *OUTSIDE, PYTHON, "-c", _READ_KEYS])
    if done.stderr.strip() == str(errno.ENOSYS):
        missing("keyrings", "the kernel has no keyrings")
    outside = json.loads(done.stdout)
    assert outside.pop("ring linked") == "EDEADLK"  # into itself
    assert set(outside.values()) == {"s3cret"}
    inside = report([*with_key, *INSIDE], _READ_KEYS)
    assert set(inside.values()) == {"ENOSYS"}


# --- signals

_KILL_GROUP = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(0, signal.SIGTERM)
"""
# Status 143: SIGTERM came first. 137: it lived until we killed it.
_BESIDE_A_SLEEP = """
setpriv --reuid=$0 --clear-groups sleep 300 & victim=$!
until [ "$(stat -c %u /proc/$victim)" = $0 ]; do :; done
"$@"; echo command $?
kill -KILL $victim 2>/dev/null; wait $victim; echo sleep $?
"""


def _fate_of_a_sleep(where: Sequence[str]) -> str:
    command = ["sh", "-c", _BESIDE_A_SLEEP, str(NOBODY.pw_uid), *where, PYTHON, "-c", _KILL_GROUP]
    return finish(command, start_new_session=True).stdout


def test_without_a_terminal_the_callers_group_is_out_of_reach() -> None:
    """kill(0, …) reaches a whole process group, through the pid namespace's border: the pipeline we are part of."""
    assert _fate_of_a_sleep(OUTSIDE) == "command 0\nsleep 143\n"
    assert _fate_of_a_sleep(INSIDE) == "command 0\nsleep 137\n"


# --- the audit log

_FORGE = """
import errno, json, os, socket, sys
path, directory = sys.argv[1], os.path.dirname(sys.argv[1])
forged = directory + "/forged"
def told(step):
    try:
        step()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def write(name, mode):
    with open(name, mode) as file:
        file.write('{"forged": 1}\\n')
try:
    socket.create_connection(("nowhere.test", 80))
except OSError:
    pass
write(forged, "w")
print(json.dumps({
    "read": open(path).read(),
    "truncate": told(lambda: os.truncate(path, 0)),
    "write": told(lambda: write(path, "w")),
    "append": told(lambda: write(path, "a")),
    "replace": told(lambda: os.replace(forged, path)),
    "unlink": told(lambda: os.unlink(path)),
    "rename": told(lambda: os.rename(path, forged)),
    "link": told(lambda: os.link(path, directory + "/linked")),
}))
"""


def test_the_command_cannot_rewrite_what_is_said_about_it(place: Path) -> None:
    """Its audit log, in a directory of its own: neither read, truncated, appended to nor replaced by its path."""
    log = place / "audit.ndjson"
    found = report([*RUN, "--audit-log", str(log), "--"], _FORGE, str(log))
    assert found.pop("read") == ""
    assert (found["replace"], found["unlink"], found["rename"]) == ("EBUSY", "EBUSY", "EBUSY")
    assert found["link"] != "done"
    records = read_records(log)
    assert records[0]["target"] == "nowhere.test"
    assert records[0]["decision"] == "deny"
    assert "forged" not in log.read_text()


_PUT_ANOTHER_IN_ITS_PLACE = """
import os, socket, sys
log = sys.argv[1]
directory = os.path.dirname(log)
try:
    socket.create_connection(("nowhere.test", 80))
except OSError:
    pass
try:
    os.rename(directory, directory + ".old")
    os.mkdir(directory)
    with open(log, "w") as file:
        file.write('{"forged": 1}\\n')
except OSError:
    pass
"""


@pytest.mark.xfail(strict=True, reason="rename(2) refuses a mount point, not the directory above one")
def test_the_command_cannot_move_the_logs_directory_away(place: Path) -> None:
    """And leave one of its own under that name, with a log that says something else."""
    log = place / "logs" / "audit.ndjson"
    log.parent.mkdir()
    os.chown(log.parent, NOBODY.pw_uid, NOBODY.pw_gid)
    done = finish([*RUN, "--audit-log", str(log), "--", PYTHON, "-c", _PUT_ANOTHER_IN_ITS_PLACE, str(log)])
    assert done.returncode == 0, done.stderr
    assert "forged" not in log.read_text()
    assert read_records(log)[0]["target"] == "nowhere.test"


# --- sudo


@pytest.fixture
def sudo(tmp_path: Path) -> list[str]:
    """What to put before a command on a machine where everybody may use sudo for everything, without a password."""
    require("sudo")
    sudoers = tmp_path / "sudoers"
    sudoers.write_text("Defaults env_reset\nALL ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    return _with_file(sudoers, "/etc/sudoers")


def _through_sudo(sudo: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """`nono-ebpf run` called by nobody."""
    return finish([*sudo, *AS_NOBODY, "sudo", "-n", "--", *PROGRAM, "run", *options, "--", "echo", STARTED])


def test_an_ordinary_user_runs_as_nobody_else(sudo: list[str]) -> None:
    """sudo's rights are for the sandbox, not for becoming another person in it."""
    assert _through_sudo(sudo).stdout == f"{STARTED}\n"
    assert _through_sudo(sudo, "--user", "nobody").stdout == f"{STARTED}\n"
    assert_refused(_through_sudo(sudo, "--user", "daemon"), "as the one who called it")


@pytest.mark.parametrize("closed", ["file", "directory"])
@pytest.mark.parametrize("option", ["--audit-log", "--profile", "--upstream-ca"])
def test_an_ordinary_user_opens_no_file_of_roots(sudo: list[str], place: Path, option: str, closed: str) -> None:
    """Neither to append to, nor to read what a message would then quote."""
    private = place / "root"
    private.mkdir(mode=0o700)
    file = private / "file"
    file.write_text('{"s3cret": 1}\n')
    if closed == "file":
        private.chmod(0o755)
        file.chmod(0o600)
    done = _through_sudo(sudo, option, str(file))
    assert_refused(done, "Permission denied")
    assert "s3cret" not in done.stderr
    assert file.read_text() == '{"s3cret": 1}\n'


@pytest.mark.parametrize("start", ["", "exec "], ids=["a program between", "sudo under sudo"])
def test_an_administrators_environment_is_not_to_be_had(sudo: list[str], place: Path, start: str) -> None:
    """What runs under `sudo -u nobody` cannot name that sudo as the one whose surroundings the command is to have."""
    script = place / "script"
    program = " ".join(PROGRAM)
    script.write_text(f"{start}sudo -n {program} run --from-sudo=$PPID:022 -- sh -c 'echo {STARTED} $ADMIN_TOKEN'\n")
    command = [*sudo, "sudo", "-n", "-u", "nobody", "sh", str(script)]
    done = finish(command, env=os.environ | {"ADMIN_TOKEN": "s3cret"})
    assert "s3cret" not in done.stdout
    assert_refused(done, "--from-sudo")


# --- names

_ASK = """
import os, re, socket, struct, sys
def resolver(table):
    ports = re.findall(r"^ *\\d+: [0-9A-F]+:([0-9A-F]{4}) ", open("/proc/net/" + table).read(), re.M)
    assert len(ports) == 1, ports
    return int(ports[0], 16)
def query(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!2H", 1, 1)
def ask(comm, name, host, port, source, connected=False):
    if os.fork() == 0:
        open("/proc/self/comm", "w").write(comm)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.bind(("::1" if ":" in host else "127.0.0.1", source))
            if connected:
                client.connect((host, port))
                client.send(query(name))
            else:
                client.sendto(query(name), (host, port))
            client.recv(512)
        os._exit(0)
    assert os.wait()[1] == 0
v4, v6 = resolver("udp"), resolver("udp6")
ask("former", "former.test", "192.0.2.53", 53, 4444)
ask("direct", "direct.test", "127.0.0.1", v4, 4444)
ask("connected", "connected.test", "127.0.0.1", v4, 4444, True)
ask("former6", "former6.test", "2001:db8::53", 53, 4446)
ask("direct6", "direct6.test", "::1", v6, 4446)
ask("connected6", "connected6.test", "::1", v6, 4446, True)
ask("fresh", "fresh.test", "127.0.0.1", v4, 4448)
"""


def test_who_asks_the_resolver_directly_is_known(place: Path) -> None:
    """A query to the port where our resolver really is has its sender in the audit log: not nobody, and not whoever had
    the sender's port before.
    """
    log = place / "audit.ndjson"
    done = finish([*RUN, "--audit-log", str(log), "--", PYTHON, "-c", _ASK])
    assert done.returncode == 0, done.stderr
    asked = {record["target"]: record for record in read_records(log) if record["event"] == "dns"}
    wanted = ["former", "direct", "connected", "former6", "direct6", "connected6", "fresh"]
    assert {name: record.get("comm") for name, record in asked.items()} == {f"{name}.test": name for name in wanted}
    assert len({record["pid"] for record in asked.values()}) == len(wanted)
    assert {record["uid"] for record in asked.values()} == {NOBODY.pw_uid}


# --- HTTP that is not quite

SPELLINGS = {
    "CR LF first": [b"\r\nGET /x HTTP/1.1\r\n"],
    "LF first": [b"\nGET /x HTTP/1.1\r\n"],
    "two blank lines first": [b"\r\n\r\nGET /x HTTP/1.1\r\n"],
    "blank first": [b" GET /x HTTP/1.1\r\n"],
    "tab first": [b"\tGET /x HTTP/1.1\r\n"],
    "lower case": [b"get /x HTTP/1.1\r\n"],
    "mixed case": [b"Get /x HTTP/1.1\r\n"],
    "lower-case protocol": [b"GET /x http/1.1\r\n"],
    "form feed in the target": [b"GET /\x0cx HTTP/1.1\r\n"],
    "control character in the target": [b"GET /\x01x HTTP/1.1\r\n"],
    "DEL in the target": [b"GET /\x7fx HTTP/1.1\r\n"],
    "vertical tab for the blank": [b"GET\x0b/x HTTP/1.1\r\n"],
    "tabs for blanks": [b"GET\t/x\tHTTP/1.1\r\n"],
    "two CRs": [b"GET /x HTTP/1.1\r\r\n"],
    "bare LF": [b"GET /x HTTP/1.1\n"],
    "odd version": [b"GET /x HTTP/01.1\r\n"],
    "version 2": [b"GET /x HTTP/2.0\r\n"],
    "blank line, then the rest": [b"\r\n", b"GET /x HTTP/1.1\r\n"],
    "in pieces": [b"GE", b"T /x HT", b"TP/1.1\r\n"],
    "as it should be": [b"GET /x HTTP/1.1\r\n"],
}

_SPEAK = """
import json, socket, sys, time
def answer(host, port, pieces):
    got = b""
    with socket.create_connection((host, port), 10) as client:
        client.settimeout(10)
        try:
            for piece in pieces:
                client.sendall(piece.encode("latin-1"))
                time.sleep(0.1 * (len(pieces) > 1))
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                got += data
        except OSError as error:
            got = got or repr(error).encode()
    return got.decode("latin-1")
print(json.dumps([answer(host, port, pieces) for host, port, pieces in json.loads(sys.argv[1])]))
"""


def test_http_spelled_oddly_takes_no_denied_host_past(world: World) -> None:
    """What a lenient server would take for a request is judged as one, or refused: it never travels unread. The echo
    server would show that it did, whatever a web server makes of it.
    """
    rest = b"Host: other.example.net\r\nConnection: close\r\n\r\n"
    texts = [[piece.decode("latin-1") for piece in (*pieces, rest)] for pieces in SPELLINGS.values()]
    servers = [("one.example.com", 80), ("echo.example.com", 7)]
    asked = [(host, port, [*text[:-2], text[-2] + text[-1]]) for host, port in servers for text in texts]
    good = ("one.example.com", 80, ["GET /good HTTP/1.1\r\nHost: one.example.com\r\nConnection: close\r\n\r\n"])
    options = ["--allow-domain", "one.example.com", "--allow-domain", "echo.example.com:7"]
    answers = world.machine.run(options, [PYTHON, "-c", _SPEAK, json.dumps([good, *asked])]).json()
    assert "/good" in answers[0]
    seen = [each.what for each in world.seen if each.service != "dns"]
    assert seen == ["GET one.example.com/good"]
    statuses = [answer.split(" ")[1] if answer.startswith("HTTP/1.1 ") else answer for answer in answers[1:]]
    spelled = [(port, spelling) for _, port in servers for spelling in SPELLINGS]
    wrong = {at: status for at, status in zip(spelled, statuses, strict=True) if not re.fullmatch("4..|505", status)}
    assert wrong == {}


UNCALLED = {
    "no version": "GET /x\r\n",
    "no version, two blanks": "GET  /x\r\n",
    "another protocol": "GET /x RTSP/1.0\r\n",
}


@pytest.mark.parametrize("spelling", UNCALLED)
def test_a_request_that_does_not_say_http_takes_no_denied_host_past(world: World, spelling: str) -> None:
    """llhttp, in aiohttp and Node, answers it all the same, by the Host field behind it."""
    request = f"{UNCALLED[spelling]}Host: other.example.net\r\nConnection: close\r\n\r\n"
    asked = json.dumps([("one.example.com", 80, [request])])
    done = world.machine.run(["--allow-domain", "one.example.com"], [PYTHON, "-c", _SPEAK, asked])
    assert done.returncode == 0, done.stderr
    assert [each.what for each in world.seen if "other.example.net" in each.what] == []
