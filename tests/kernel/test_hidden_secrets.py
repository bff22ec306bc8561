"""Directories of secrets: why they are hidden as a whole, and which ones `secret_directories` names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import viewing
from kit.account import NOBODY, TIMEOUT_S, directory_of_nobody, place  # noqa: F401  # a fixture

from nono_ebpf.errors import ConfigError
from nono_ebpf.sandbox.secrets_hidden import secret_directories
from nono_ebpf.sandbox.user import User

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.root, pytest.mark.kernel]


def _given(path: Path, mode: int = 0o600) -> Path:
    """A file of the account's with its directories."""
    for directory in reversed(path.parents):
        if not directory.exists():
            directory.mkdir(mode=0o755)
            os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
    path.write_text("old")
    path.chmod(mode)
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    return path


def _user(home: Path) -> User:
    return User("nobody", NOBODY.pw_uid, NOBODY.pw_gid, (), str(home))


# --- why

_READ_TWICE = "cat {0}; echo; read line; cat {0}"


@pytest.mark.parametrize("hidden", ["hidden", "hidden_directories"])
def test_a_mask_over_a_file_falls_and_one_over_its_directory_does_not(place: Path, hidden: str) -> None:  # noqa: F811
    """Another file is renamed over it outside: the kernel takes the mask off what is unlinked by that."""
    key = _given(place / "secrets/key")
    masked = {"hidden": [key]} if hidden == "hidden" else {"hidden_directories": [key.parent]}
    command = viewing.command("sh", "-c", _READ_TWICE.format(key), **masked)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, cwd="/", **streams) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        _given(place / "secrets/key.new").write_text("new")
        (place / "secrets/key.new").rename(key)
        seen, _ = process.communicate("\n", timeout=TIMEOUT_S)
    assert seen == {"hidden": "new", "hidden_directories": ""}[hidden]


def _in_view(script: str, *directories: Path, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, *viewing.command("sh", "-c", script, hidden_directories=directories)]
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True}
    return subprocess.run(command, text=True, cwd="/", timeout=TIMEOUT_S, check=False, **streams)


def test_a_hidden_directory_takes_nothing(place: Path) -> None:  # noqa: F811
    """What the command leaves there would be taken for the secret by nobody, and cannot be left."""
    key = _given(place / "secrets/key")
    done = _in_view(f"touch {key.parent}/x; mkdir {key.parent}/y; ls -A {key.parent}", key.parent)
    assert (done.stdout, done.stderr.count("Read-only file system")) == ("", 2)
    assert key.read_text() == "old"


def test_directories_in_each_other_are_hidden(place: Path) -> None:  # noqa: F811
    """The one above does for both."""
    key = _given(place / "secrets/deep/key")
    done = _in_view(f"ls -A {key.parent.parent}", key.parent, key.parent.parent)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_directory_of_run_needs_no_cover(place: Path) -> None:  # noqa: F811
    """Nothing of the host's /run is there."""
    with directory_of_nobody("/run") as directory:
        done = _in_view(f"ls {directory}", _given(directory / "secrets/key").parent)
    assert "No such file" in done.stderr


# A /run of its own: other sandboxes that are just being made would miss a directory of the machine's that goes again.
_MEDIUM = Path("/run/media/disk")
_INSERT = f"""
mount -t tmpfs -o mode=755 tmpfs /run; mkdir {_MEDIUM.parent}; cp -a "$0" {_MEDIUM}
exec "$@"
"""


def test_what_is_kept_of_run_is_covered_too(place: Path) -> None:  # noqa: F811
    """It is put back into the view before anything is hidden, and its covers stay where they are."""
    _given(place / "secrets/key")
    _given(place / "deep/secrets/key")
    inserted = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _INSERT, str(place)]
    secrets, above = _MEDIUM / "secrets", _MEDIUM / "deep"
    done = _in_view(f"ls -A {_MEDIUM} {secrets}; mv {secrets} {_MEDIUM}/moved", secrets, before=inserted)
    assert done.stdout == f"{_MEDIUM}:\ndeep\nsecrets\n\n{secrets}:\n"
    assert "busy" in done.stderr
    assert "busy" in _in_view(f"mv {above} {_MEDIUM}/moved", above / "secrets", before=inserted).stderr


@pytest.mark.parametrize(("link", "problem"), [(False, "No such file or directory"), (True, "is not where it was")])
def test_without_its_directory_nothing_is_started(place: Path, link: bool, problem: str) -> None:  # noqa: F811
    """What is hidden has to be what was found when the paths were looked up."""
    wanted = place / "secrets"
    if link:
        wanted.symlink_to(_given(place / "real/key").parent)
    done = _in_view("echo started", wanted)
    assert (done.stdout, done.returncode == 0) == ("", False)
    assert re.search(f"{wanted}.*{problem}", done.stderr)


# --- which


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The account's, with the working directory below it."""
    with directory_of_nobody("/var/tmp") as made:
        for name in (".config", "project"):
            (made / name).mkdir()
            os.chown(made / name, NOBODY.pw_uid, NOBODY.pw_gid)
        monkeypatch.chdir(made / "project")
        yield made


def test_the_directory_of_the_file_is_hidden(home: Path) -> None:
    """Also when the file comes later."""
    key = _given(home / ".config/own/key")
    assert secret_directories(key, _user(home)) == (key.parent,)
    assert secret_directories(key.parent / "later", _user(home)) == (key.parent,)


def test_every_directory_with_a_link_to_it_is_hidden(home: Path) -> None:
    """A link can be turned: `token` → `..data/token`, `..data` → `..1`."""
    volume = _given(home / "volume/..1/token").parent.parent
    (volume / "..data").symlink_to("..1")
    (volume / "token").symlink_to("..data/token")
    assert secret_directories(volume / "token", _user(home)) == (volume / "..1", volume)


def test_a_link_of_the_systems_does_no_harm(home: Path) -> None:
    """/var/run leads to /run: only root can turn it."""
    with directory_of_nobody("/run") as directory:
        key = _given(directory / "key")
        assert secret_directories(Path("/var/run") / directory.name / "key", _user(home)) == (key.parent,)


NEEDED = {
    ".key": "is your home directory",
    ".config/key": "belongs to your home directory",
    "project/key": "is the working directory",
    "tools/key": "the command needs",
    "above/key": "holds ",
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_directory_that_the_command_needs_is_not_hidden(home: Path, name: str) -> None:
    """Its home, its working directory, its program, or one above; the remedy can be pasted."""
    key = _given(home / name)
    needed = [home / "tools", _given(home / "above/bin/agent")]
    with pytest.raises(ConfigError, match=NEEDED[name]) as caught:
        secret_directories(key, _user(home), needed)
    own = home / ".config/nono-ebpf/secrets"
    assert str(caught.value).endswith(f"mkdir -p -m 700 {own} && mv {key} {own}/")
    assert str(caught.value).count("\n") == 0
    subprocess.run(["sh", "-c", str(caught.value).rpartition(": ")[2]], check=True)
    assert secret_directories(own / key.name, _user(home), needed) == (own,)


@pytest.mark.parametrize("directory", ["/", "/etc", "/tmp", "/var/lib", "/usr/local/etc", "/dev/shm"])
def test_a_directory_of_the_systems_is_not_hidden(home: Path, directory: str) -> None:
    """Programs of every kind find their files there."""
    with pytest.raises(ConfigError, match=f"it lies in {directory}, which is the system's"):
        secret_directories(Path(directory) / "nono-ebpf-test-key", _user(home))


def test_a_link_in_the_home_directory_is_not_followed(home: Path) -> None:
    """It could be turned, and what it then leads to would not be hidden."""
    key = _given(home / ".config/own/key")
    (home / "key").symlink_to(key)
    with pytest.raises(ConfigError, match=f"symbolic link in {home}.*name it by its real path, {key}$"):
        secret_directories(home / "key", _user(home))


def test_a_file_with_a_second_name_is_refused(home: Path) -> None:
    """The other name would stay."""
    key = _given(home / ".config/own/key")
    os.link(key, home / "second")
    with pytest.raises(ConfigError, match=r"second name") as caught:
        secret_directories(key, _user(home))
    subprocess.run(["sh", "-c", str(caught.value).rpartition(": ")[2]], check=True)
    assert secret_directories(key, _user(home)) == (key.parent,)


@pytest.mark.parametrize("path", ["own", "own/key/x", "missing/key", "loop/key"])
def test_what_can_be_no_secret_is_named(home: Path, path: str) -> None:
    """A directory, a file taken for one, one that is missing, links without an end."""
    _given(home / ".config/own/key")
    (home / ".config/loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=shlex.quote(str(home / ".config" / path))):
        secret_directories(home / ".config" / path, _user(home))


def _roots(directory: Path, mode: int = 0o600) -> Path:
    directory.mkdir(parents=True)
    (directory / "key").write_text("old")
    (directory / "key").chmod(mode)
    return directory / "key"


@pytest.fixture
def in_etc() -> Iterator[Path]:
    """A directory that is root's all the way up."""
    with directory_of_nobody("/etc") as made:
        os.chown(made, 0, 0)
        yield made


def test_what_the_account_can_never_read_needs_no_hiding(home: Path, in_etc: Path) -> None:
    """Root's, closed to all others, and so is every directory on the way: wherever it lies."""
    assert secret_directories(_roots(in_etc / "a"), _user(home)) == ()


def test_what_the_account_could_come_to_read_is_hidden(home: Path, in_etc: Path) -> None:
    """Open to others, its own, in a directory that it may write to, or one whose owner it is."""
    readable = _roots(in_etc / "readable", 0o640)
    assert secret_directories(readable, _user(home)) == (readable.parent,)
    own = _roots(in_etc / "own")
    os.chown(own, NOBODY.pw_uid, 0)
    assert secret_directories(own, _user(home)) == (own.parent,)
    writable = _roots(in_etc / "writable")
    writable.parent.chmod(0o777)
    assert secret_directories(writable, _user(home)) == (writable.parent,)
    below = _roots(in_etc / "owned/deep")
    os.chown(below.parent.parent, NOBODY.pw_uid, 0)
    below.parent.parent.chmod(0o555)
    assert secret_directories(below, _user(home)) == (below.parent,)
