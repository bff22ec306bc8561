"""A secret that lies in a file, hidden with its directory: every way to read it, before and after it is replaced.

Whoever replaces it is outside and of the same account, as Vault's agent, a kubelet or an editor would be. Each attack
is made outside as well, where it has to succeed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attacks import secrets
from conftest import ATTACKS
from kit import viewing
from kit.account import AS_NOBODY, NOBODY, TIMEOUT_S
from kit.inside import COMMAND, Agent, environment
from kit.sandboxes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.bypass("secret-files")]

# No other run's: what lies beside a test's own directory is searched as well.
OLD, NEW = f"canary-before-{os.getpid()}-3f1c", f"canary-after-{os.getpid()}-9b7e"
MODE = 0o600


@pytest.fixture
def home(place: Path) -> Path:
    """Of the account: `secrets/key`, to be hidden, below a directory that the account may rename."""
    made = place / "conf"
    _as_account(lambda: (made / "secrets").mkdir(parents=True))
    _write(made / "secrets" / "key", OLD)
    return made


def _as_account(step: Callable[[], object]) -> None:
    """What a process of the account's does outside."""
    os.setegid(NOBODY.pw_gid)
    os.seteuid(NOBODY.pw_uid)
    try:
        step()
    finally:
        os.seteuid(0)
        os.setegid(0)


def _write(path: Path, text: str) -> None:
    def write() -> None:
        path.write_text(text)
        path.chmod(MODE)

    _as_account(write)


@contextmanager
def _inside(*directories: Path) -> Iterator[Agent]:
    command = viewing.command(*COMMAND, hidden_directories=directories)
    agent = Agent(command, ATTACKS, env=environment())
    try:
        yield agent
    finally:
        agent.close()


@contextmanager
def _outside() -> Iterator[Agent]:
    agent = Agent([*AS_NOBODY, *COMMAND], ATTACKS, env=environment())
    try:
        yield agent
    finally:
        agent.close()


def _seen(agent: Agent, path: Path) -> list[str]:
    """By which ways one of the canaries is."""
    met = agent.call(secrets.everything, str(path))
    return sorted(way for way, what in met.items() if OLD in what or NEW in what)


# --- who replaces it


def _rename(directory: Path) -> None:
    _write(directory / "key.new", NEW)
    _as_account(lambda: (directory / "key.new").rename(directory / "key"))


def _in_place(directory: Path) -> None:
    _write(directory / "key", NEW)


def _remove(directory: Path) -> None:
    _as_account((directory / "key").unlink)
    _write(directory / "key", NEW)


def _move_in(directory: Path) -> None:
    """Written elsewhere, which is seen, and closed until it is moved."""
    aside = directory.parent.parent / "aside"
    aside.write_text(NEW)
    aside.chmod(MODE)
    aside.rename(directory / "key")
    os.chown(directory / "key", NOBODY.pw_uid, NOBODY.pw_gid)


def _second_name(directory: Path) -> None:
    """Made within: a name that nobody knew of."""
    _write(directory / "another", NEW)
    _as_account(lambda: os.link(directory / "another", directory / "a-third"))


def _directory_in_it(directory: Path) -> None:
    for name in ("v1", "v2"):
        _as_account((directory / name).mkdir)
        _write(directory / name / "key", NEW)
    _as_account(lambda: (directory / "v1").rename(directory / "v0"))
    _as_account(lambda: (directory / "v2").rename(directory / "v1"))


@pytest.mark.parametrize(
    "replace", [_rename, _in_place, _remove, _move_in, _second_name, _directory_in_it], ids=lambda step: step.__name__
)
def test_a_replaced_secret_is_never_seen(home: Path, replace: Callable[[Path], None]) -> None:
    """Whatever becomes of the names in the directory; outside, the new one is there for who is to read it."""
    with _inside(home / "secrets") as inside:
        assert _seen(inside, home / "secrets/key") == []
        replace(home / "secrets")
        assert _seen(inside, home / "secrets/key") == []
        for path in sorted((home / "secrets").rglob("*")):
            assert _seen(inside, path) == []
    assert NEW in {path.read_text() for path in (home / "secrets").rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["outside", "in a view that hides nothing"])
def test_the_same_attacks_see_it_where_nothing_is_hidden(home: Path, where: str) -> None:
    """The control: most of them are good ways to a file that is not hidden."""
    with _outside() if where == "outside" else _inside() as agent:
        seen = _seen(agent, home / "secrets/key")
    wanted = {
        *(
            "name itself",
            "name dots",
            "name /proc/self/root",
            "cwd",
            "cwd above",
            "O_PATH",
            "O_PATH above",
            "link file",
        ),
        *("rename file", "rename directory", "rename above", "exchange directory", "exchange above", "root"),
    }
    assert wanted - set(seen) == set()


@pytest.mark.bypass("uncovered-mounts")
@pytest.mark.parametrize("part", ["above", "directory", "within", "file"])
def test_another_mount_does_not_show_it(home: Path, place: Path, part: str) -> None:
    """A bind mount, made before, of the directory, of one above or below it, or of the file alone."""
    directory = home / "secrets"
    _as_account((directory / "deep").mkdir)
    _write(directory / "deep" / "key", OLD)
    source = {"above": home, "directory": directory, "within": directory / "deep", "file": directory / "key"}[part]
    other = place / "other"
    _as_account(other.touch if part == "file" else other.mkdir)
    shown = {"above": other / "secrets/key", "file": other}.get(part, other / "key")
    bind = ["unshare", "--mount", "--propagation=private", "sh", "-ec", 'mount --bind "$0" "$1"; shift; exec "$@"']
    bound = [*bind, str(source), str(other)]
    control = subprocess.run([*bound, *AS_NOBODY, "cat", shown], capture_output=True, text=True, check=True)
    assert control.stdout == OLD
    command = viewing.command(*COMMAND, hidden_directories=[directory])
    agent = Agent([*bound, *command], ATTACKS, env=environment())
    try:
        for replace in (_rename, lambda _: _rename(directory / "deep")):
            assert _seen(agent, shown) + _seen(agent, directory / "key") == []
            replace(directory)
        assert _seen(agent, shown) + _seen(agent, directory / "key") == []
    finally:
        agent.close()


@pytest.mark.bypass("uncovered-mounts")
def test_another_mount_of_a_file_system_below_it_does_not_show_it(home: Path, place: Path) -> None:
    """The secret lies on a file system of its own, mounted in the hidden directory and once more elsewhere."""
    deep, other = home / "secrets/deep", place / "other"
    for directory in (deep, other):
        _as_account(directory.mkdir)
    script = (
        'mount -t tmpfs -o mode=755 tmpfs "$0"; printf %s "$2" >"$0/key"; chmod 644 "$0/key"; '
        'mount --bind "$0" "$1"; shift 2; exec "$@"'
    )
    mounted = ["unshare", "--mount", "--propagation=private", "sh", "-ec", script, str(deep), str(other), OLD]
    control = subprocess.run([*mounted, *AS_NOBODY, "cat", other / "key"], capture_output=True, text=True, check=True)
    assert control.stdout == OLD
    command = viewing.command(*COMMAND, hidden_directories=[home / "secrets"])
    agent = Agent([*mounted, *command], ATTACKS, env=environment())
    try:
        assert _seen(agent, other / "key") + _seen(agent, deep / "key") == []
    finally:
        agent.close()


# --- the way Kubernetes projects it


def _volume(place: Path) -> Path:
    """`volume/token` → `..data/token`, `..data` → `..1`: proc and names as the kubelet's atomic writer has them."""
    volume = place / "volume"
    _as_account(volume.mkdir)
    _project(volume, "..1", OLD)
    _as_account(lambda: (volume / "token").symlink_to("..data/token"))
    return volume


def _project(volume: Path, version: str, text: str) -> None:
    _as_account((volume / version).mkdir)
    _write(volume / version / "token", text)
    _as_account(lambda: (volume / "..data_tmp").symlink_to(version))
    _as_account(lambda: (volume / "..data_tmp").rename(volume / "..data"))


def test_a_projected_secret_is_never_seen(place: Path) -> None:
    """Its rotation makes a directory and turns a link to it."""
    volume = _volume(place)
    with _outside() as outside:
        assert "name itself" in _seen(outside, volume / "token")


def test_a_projected_secret_stays_hidden(place: Path) -> None:
    """The directory that its links lie in is hidden, so that whatever they are turned to is."""
    volume = _volume(place)
    with _inside(volume) as inside:
        assert _seen(inside, volume / "token") == []
        _project(volume, "..2", NEW)
        assert (volume / "token").read_text() == NEW
        for path in (volume / "token", volume / "..data/token", volume / "..2/token"):
            assert _seen(inside, path) == []


# --- the directory itself


def _swap(home: Path) -> None:
    _as_account((home / "new").mkdir)
    _write(home / "new/key", NEW)
    _as_account(lambda: (home / "secrets").rename(home / "old"))
    _as_account(lambda: (home / "new").rename(home / "secrets"))


def _exchange(home: Path) -> None:
    _as_account((home / "new").mkdir)
    _write(home / "new/key", NEW)
    names = [os.fsencode(home / name) for name in ("new", "secrets")]
    assert ctypes.CDLL(None).renameat2(-100, names[0], -100, names[1], secrets.RENAME_EXCHANGE) == 0


def _make_anew(home: Path) -> None:
    for step in ((home / "secrets/key").unlink, (home / "secrets").rmdir, (home / "secrets").mkdir):
        _as_account(step)
    _write(home / "secrets/key", NEW)


def _rename_above(home: Path) -> None:
    _as_account(lambda: home.rename(home.parent / "gone"))
    _as_account(lambda: (home / "secrets").mkdir(parents=True))
    _write(home / "secrets/key", NEW)


@pytest.mark.parametrize("swap", [_swap, _exchange, _make_anew, _rename_above], ids=lambda step: step.__name__)
def test_the_sandbox_ends_when_the_directory_itself_is_replaced(home: Path, swap: Callable[[Path], None]) -> None:
    """No mount can stay over a path. Nothing is left running that could read what is there now, and it is said why."""
    command = viewing.command("sh", "-c", "echo ready; exec sleep 300", hidden_directories=[home / "secrets"])
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    in_use = os.open(home / "secrets", os.O_PATH)  # by a shell outside, say: so that the kernel keeps the old one
    with subprocess.Popen(command, text=True, cwd="/", **streams) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            swap(home)
            _, said = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
            os.close(in_use)
    assert process.returncode == 125
    assert said.count("\n") == 1
    assert f"{home}/secrets, where a secret lies, was renamed or removed outside" in said


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_what_becomes_of_its_names_is_not_heard_of(home: Path, place: Path, where: str) -> None:
    """inotify(7) inside tells nothing of what is made and renamed in the directory outside."""
    with _inside(home / "secrets") if where == "inside" else _outside() as agent, ThreadPoolExecutor(1) as elsewhere:
        heard = elsewhere.submit(agent.call, secrets.heard, str(home / "secrets"), str(place))
        assert eventually((place / "listening").exists)
        _rename(home / "secrets")
        (place / "enough").touch()
        assert ("key.new" in heard.result()) is (where == "outside")


def test_the_hosts_own_view_is_untouched(home: Path) -> None:
    """No mount of ours outside, and the directory is usable there."""
    with _inside(home / "secrets") as inside:
        assert _seen(inside, home / "secrets/key") == []
        assert str(home) not in Path("/proc/self/mountinfo").read_text()
        assert (home / "secrets/key").read_text() == OLD
        _rename(home / "secrets")
