"""Unix sockets of daemons outside, by every name and kind: hidden.

What can be tried outside as the same account is tried there first: an attack that fails everywhere would prove nothing.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attacks import unix
from kit.abilities import RESOLVES_UNIX, landlock_abi
from kit.account import (
    AS_NOBODY,
    CONNECT,
    INSIDE,
    NOBODY,
    OUTSIDE,
    PYTHON,
    RUN,
    STARTED,
    assert_refused,
    bystander,
    directory_of_nobody,
    finish,
    report,
    with_file,
)
from kit.expect import require
from kit.sandboxes import eventually
from results import REPORTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]


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


def _assert_hidden(paths: Sequence[Path], prefix: Sequence[str] = ()) -> None:
    """The account can connect to all of them, and to none from inside.

    The control comes last: a connection that waits to be accepted is in /proc/net/unix with the socket's path.
    """
    names = [str(path) for path in paths]
    found = report([*prefix, *INSIDE], CONNECT, *names)
    assert report([*prefix, *OUTSIDE], CONNECT, *names) == ["done"] * len(names)
    assert set(found) <= {"ECONNREFUSED", "ENOENT", "EACCES"}, dict(zip(names, found, strict=True))


@pytest.mark.bypass("pathname-sockets")
def test_a_hosts_socket_is_hidden_however_it_came_by_its_name(place: Path) -> None:
    """Bound by a relative path, linked to another name afterwards, or with a line feed in its path: /proc/net/unix has
    not, or not rightly, where such a one lies.
    """
    sockets = {"plain": "plain", "relative": "relative", "linked": "linked", "newline": "new\nline"}
    paths = [place / name for name in sockets.values()]
    arguments = [text for how, path in zip(sockets, paths, strict=True) for text in (how, str(path))]
    with bystander(*AS_NOBODY, PYTHON, "-c", _DAEMON, *arguments):
        _assert_hidden(paths)


@pytest.mark.bypass("pathname-sockets")
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


@pytest.mark.bypass("pathname-sockets", "agents-of-the-account")
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
            _assert_hidden(paths, with_file(passwd, "/etc/passwd"))


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


@pytest.mark.bypass("closed-to-the-account")
@pytest.mark.parametrize("closed", ["socket", "directory"])
def test_a_socket_closed_to_the_account_cannot_be_allowed(roots_socket: Path, closed: str) -> None:
    """--allow-socket shows what the account could reach anyway; it opens nothing, be the way to it or itself closed."""
    allowed = [*RUN, "--allow-socket", str(roots_socket), "--"]
    assert report(allowed, CONNECT, str(roots_socket)) == ["done"]
    if closed == "socket":
        roots_socket.chmod(0o600)
    else:
        roots_socket.parent.chmod(0o700)
    assert report(OUTSIDE, CONNECT, str(roots_socket)) == ["EACCES"]
    done = finish([*allowed, "echo", STARTED])
    assert_refused(done, "may not connect" if closed == "socket" else "Permission denied")


# --- from the sandbox that the tests share, and one of its own where the daemon has to be there first

DAEMONS = (Path(__file__).parent / "daemons.py").read_text()
REFUSALS = {"ECONNREFUSED", "ENOENT", "EACCES", "EPERM", "EPROTOTYPE", "ENOTSOCK"}


@contextmanager
def _daemons(place: Path, *pairs: str) -> Iterator[Path]:
    """Stand-ins of the account's own, with the canary they write to."""
    canary = place / "canary"
    with bystander(*AS_NOBODY, PYTHON, "-c", DAEMONS, str(canary), *pairs):
        yield canary


def _forget(canary: Path, asked: int) -> None:
    """Once every question of a control has been noted."""
    assert eventually(lambda: canary.exists() and canary.read_text().count("\n") == asked)
    canary.unlink()


def _sockets(place: Path) -> dict[str, str]:
    return {kind: str(place / f"{kind}.sock") for kind in ("stream", "datagram", "seqpacket")}


def _pairs(sockets: dict[str, str]) -> list[str]:
    return [word for pair in sockets.items() for word in pair]


@pytest.mark.bypass("unix-datagrams", "pathname-sockets", "proc-paths", "uncovered-mounts")
def test_a_daemons_socket_stays_covered(start_inside: Callable[..., Agent], outside: Agent, place: Path) -> None:
    """Of any kind; by /proc, links, renames and relative names; and by root of a user namespace, whatever is bound,
    overlaid, moved or unmounted.
    """
    sockets = _sockets(place)
    with _daemons(place, *_pairs(sockets)) as canary:
        control = outside.call(unix.reach_all, list(sockets.values()))
        assert list(control.values()).count("done") == 3, control
        _forget(canary, 3)
        inside = start_inside()
        met = inside.call(unix.reach_all, list(sockets.values()))
        assert set(met.values()) <= REFUSALS, met
        around = inside.call(unix.roundabout, sockets["stream"])
        assert "done" not in around.values(), around
        assert inside.call(unix.sendto, sockets["datagram"]) in REFUSALS
        rooted = inside.call(unix.rooted, sockets["stream"])
        assert [how for how, outcome in rooted.items() if outcome.startswith("reached")] == [], rooted
        assert not canary.exists()


@pytest.mark.bypass("abstract-sockets")
def test_an_abstract_socket_is_another_namespaces(inside: Agent, place: Path, witness: Witness) -> None:
    """Of any kind, made before or while the sandbox runs."""
    names = {kind: f"@nono-abstract-{os.getpid()}-{kind}" for kind in ("stream", "datagram", "seqpacket")}
    with _daemons(place, *_pairs(names)) as canary:
        control = report(AS_NOBODY, _REACH_ABSTRACT, *names.values())
        assert control == ["done"] * 3
        _forget(canary, 3)
        met = inside.call(unix.reach_all, list(names.values()))
        assert set(met.values()) <= REFUSALS
        assert not canary.exists()


_REACH_ABSTRACT = """
import json, socket, sys
def told(name, kind):
    with socket.socket(socket.AF_UNIX, kind) as opened:
        opened.connect("\\0" + name[1:])
        opened.send(b"x")
        return "done"
kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]
print(json.dumps([told(*pair) for pair in zip(sys.argv[1:], kinds)]))
"""


@pytest.mark.bypass("late-pathname-sockets")
def test_a_socket_made_while_the_sandbox_runs(
    inside: Agent, outside: Agent, place: Path, instead: Callable[[str, str], None]
) -> None:
    """Refused where Landlock can (resolving unix sockets, ABI 9); where it cannot, it is a limit that README names."""
    sockets = _sockets(place)
    with _daemons(place, *_pairs(sockets)) as canary:
        assert "done" in outside.call(unix.reach_all, list(sockets.values())).values()
        _forget(canary, 3)
        met = inside.call(unix.reach_all, list(sockets.values()))
        if landlock_abi() < RESOLVES_UNIX:
            instead(REPORTED, "the kernel's Landlock cannot refuse it (ABI 9), and README says so")
            return
        assert set(met.values()) <= REFUSALS, met
        assert not canary.exists()


@pytest.mark.bypass("pathname-sockets")
def test_a_hidden_socket_is_not_moved_to_where_the_next_sandbox_finds_it(place: Path) -> None:
    """Its mask moves along with a directory, and a later search for sockets ends above the new place."""
    sockets, deep = place / "sockets", place / "one/two/three/four"
    for directory in (sockets, place / "one", place / "one/two", place / "one/two/three", deep):
        directory.mkdir()
        os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(sockets / "sock"))
        daemon.listen()
        # Its own directory, closed in an earlier run and opened in this one, is as good as one left open.
        place.chmod(0o555)
        done = finish([*INSIDE, "sh", "-c", 'chmod 755 "$0" && mv "$1" "$2"', str(place), str(sockets), str(deep)])
    assert "busy" in done.stderr
    assert (sockets / "sock").is_socket()


@pytest.mark.bypass("pathname-sockets")
def test_no_known_daemon_is_in_sight(inside: Agent) -> None:
    """docker, containerd, D-Bus, systemd, resolved, journald, agents, displays, databases."""
    met = inside.call(unix.known_places)
    assert set(met.values()) <= REFUSALS, met
    assert inside.call(unix.listed) == []


@pytest.mark.bypass("scm-rights")
def test_a_descriptor_is_handed_over_by_nobody_outside(inside: Agent, witness: Witness) -> None:
    """Whom the sandbox can reach is in the sandbox, and a socket of theirs is judged like any."""
    assert inside.call(unix.own_pair).split()[0] in {"done", "EPERM", "ECONNREFUSED"}
    assert witness.arrived("echo") == []


_TAKE = """
import socket, sys
try:
    _, (given,), _, _ = socket.recv_fds(socket.socket(fileno=0), 1, 1)
except OSError:
    print(sys.stdin.read())
    sys.exit()
with socket.socket(fileno=given) as outside:
    try:
        outside.connect((sys.argv[1], int(sys.argv[2])))
        print("connected")
    except OSError:
        print("refused")
"""


@pytest.mark.bypass("handed-over-by-stdin")
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_no_socket_comes_over_the_standard_input(where: str) -> None:
    """A unix stream is a fine stdin; whoever holds its other end may send one. Its bytes arrive and nothing else."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as given:
        socket.send_fds(ours, [b"x"], [given.fileno()])
        ours.shutdown(socket.SHUT_WR)
        before = {"inside": INSIDE, "outside": OUTSIDE}[where]
        done = finish([*before, PYTHON, "-c", _TAKE, "127.0.0.1", str(server.getsockname()[1])], stdin=theirs)
    assert done.stdout == {"inside": "x\n", "outside": "connected\n"}[where]


@pytest.mark.bypass("peer-credentials")
def test_nobody_can_be_claimed_to_be_another(inside: Agent) -> None:
    """The kernel takes no credentials but a process's own."""
    assert inside.call(unix.credentials) == {"root": "EPERM", "another pid": "EPERM", "true": "done"}


@pytest.mark.bypass("agents-of-the-account")
def test_tmux_and_ssh_agent_are_out_of_reach(start_inside: Callable[..., Agent], place: Path) -> None:
    """A terminal multiplexer would start a process outside, an agent would sign: neither answers."""
    tmux, agent = require("tmux"), require("ssh-agent")
    uid = NOBODY.pw_uid
    home, canary = place / "home", place / "canary"
    home.mkdir()
    os.chown(home, uid, NOBODY.pw_gid)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TERM": "dumb", "SHELL": "/bin/sh"}
    sockets = [str(place / "tmux.sock"), str(place / "agent.sock")]
    named = [tmux, "-S", sockets[0]]
    finish([*AS_NOBODY, *named, "-f", "/dev/null", "new-session", "-d", "sleep 300"], env=env)
    pid = finish([*AS_NOBODY, *named, "display-message", "-p", "#{pid}"], env=env).stdout.strip()
    keys = finish([*AS_NOBODY, agent, "-a", sockets[1]], env=env).stdout
    try:
        ask = [*named, "run-shell", f"touch {canary}"]
        assert finish([*AS_NOBODY, *ask], env=env).returncode == 0
        canary.unlink()
        inside = start_inside()
        met = inside.call(unix.reach_all, sockets)
        assert set(met.values()) <= REFUSALS, met
        assert not canary.exists()
    finally:
        for number in (pid, re.search(r"SSH_AGENT_PID=(\d+)", keys)[1]):  # type: ignore[index]
            os.kill(int(number), signal.SIGTERM)
            assert eventually(lambda number=number: not Path(f"/proc/{number}").exists())
