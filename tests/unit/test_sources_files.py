"""`nono_ebpf.credentials.files`: a file as it is now, whoever replaces it, and nothing else than that file."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from kit.expect import missing
from kit.patience import patient

from nono_ebpf.credentials import files, sources
from nono_ebpf.credentials.files import FileVersion
from nono_ebpf.credentials.reading import Reading, Surroundings
from nono_ebpf.credentials.references import FromCredentialsDirectory, FromFile
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 200


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long this process is held up: a file was changed just now, and there is time to look again."""
    for name in ("_JUST_NOW_NS", "_EMPTIED_NS"):
        monkeypatch.setattr(files, name, 3_600_000_000_000)
    monkeypatch.setattr(files, "_PATIENCE_S", patient(60))


def keep(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(data)
    path.chmod(mode)
    return path


def read(path: Path | str, known: Reading | None = None, *, shared_ok: bool = False) -> Reading:
    return files.read(FromFile(str(path)), str(path), os.geteuid(), known, shared_ok=shared_ok)


def state_of(path: Path | str) -> str:
    with pytest.raises(CredentialUnavailable) as caught:
        read(path)
    assert str(path) not in str(caught.value)
    return caught.value.state


def settled(path: Path) -> None:
    """Let so much time pass for the test's file as there has to be, by setting it aside."""
    time.sleep(max(0.0, (files._SETTLED_NS - (time.time_ns() - path.stat().st_ctime_ns)) / 1e9) + 0.02)


def projected(directory: Path, content: str, name: str = "..2024_01") -> Path:
    """A volume as Kubernetes projects it; the path of the token."""
    (directory / name).mkdir()
    keep(directory / name / "token", content)
    (directory / "..data").symlink_to(name)
    (directory / "token").symlink_to("..data/token")
    return directory / "token"


def replace_projection(directory: Path, content: str, new: str, old: str) -> None:
    """As the kubelet does it: the link is renamed into place, and only then is the old directory taken away."""
    (directory / new).mkdir()
    keep(directory / new / "token", content)
    (directory / "..data_tmp").symlink_to(new)
    (directory / "..data_tmp").rename(directory / "..data")
    (directory / old / "token").unlink()
    (directory / old).rmdir()


def test_a_file_that_appears_later(tmp_path: Path) -> None:
    """Missing is not for good."""
    assert state_of(tmp_path / "token") == "missing"
    assert state_of(tmp_path / "no" / "token") == "missing"
    keep(tmp_path / "token", "later\n")
    assert read(tmp_path / "token").value.reveal() == b"later"


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"a\nb", "has_newline"),
        (b"x" * 65537, "too_large"),
        (b"x" * 99999, "too_large"),
    ],
)
def test_content_that_cannot_be_used(content: bytes, state: str, tmp_path: Path) -> None:
    """Each with its own word."""
    assert state_of(keep(tmp_path / "token", content)) == state


def test_what_is_no_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes to, a directory, a device, a socket: none of them blocks, none is read."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        found = [state_of(path) for path in (tmp_path / "pipe", tmp_path, "/dev/zero", "/dev/tty", tmp_path / "socket")]
    assert found == ["not_a_file"] * 5


def test_a_link_to_outside_is_not_followed(tmp_path: Path) -> None:
    """Absolute, upwards, also from a link that was permitted, and one that never ends."""
    (tmp_path / "in").mkdir()
    keep(tmp_path / "secret", "other")
    keep(tmp_path / "in" / "mine", "mine")
    for name, target in {
        "absolute": str(tmp_path / "in" / "mine"),
        "upwards": "../secret",
        "hidden": "./sub/../../secret",
        "second": "upwards",
        "self": "self",
        "proc": "/proc/self/environ",
    }.items():
        (tmp_path / "in" / name).symlink_to(target)
        assert state_of(tmp_path / "in" / name) == "symlink"
    assert state_of("/dev/stdin") == "symlink"


def test_a_link_within_its_directory_is_followed(tmp_path: Path) -> None:
    """One step, several, through directories; and where it leads is judged like any other file."""
    (tmp_path / "v1").mkdir()
    keep(tmp_path / "v1" / "token", "one")
    (tmp_path / "current").symlink_to("v1")
    (tmp_path / "token").symlink_to("./current//token")
    (tmp_path / "here").symlink_to(".")
    assert read(tmp_path / "token").value.reveal() == b"one"
    assert state_of(tmp_path / "here") == "not_a_file"
    (tmp_path / "v1" / "token").chmod(0o644)
    assert state_of(tmp_path / "token") == "not_private"


def test_a_file_replaced_by_a_link(tmp_path: Path) -> None:
    """What was known is not given out for it: neither for one to outside, nor for one to another file within."""
    known = read(keep(tmp_path / "token", "mine"))
    keep(tmp_path / "other", "other")
    (tmp_path / "link").symlink_to(keep(tmp_path.parent / "outside", "outside"))
    (tmp_path / "link").rename(tmp_path / "token")
    with pytest.raises(CredentialUnavailable) as caught:
        read(tmp_path / "token", known)
    assert caught.value.state == "symlink"
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "link").rename(tmp_path / "token")
    assert read(tmp_path / "token", known).value.reveal() == b"other"


def test_whose_file_it_may_be(tmp_path: Path) -> None:
    """The account's and root's; another account could put what it likes there."""
    if os.geteuid() != 0:
        missing("root", "files of other accounts are needed")
    path = keep(tmp_path / "token", "x")
    os.chown(path, 4242, 4242)
    assert state_of(path) == "not_private"
    assert files.read(FromFile(str(path)), str(path), 4242, None).value.reveal() == b"x"
    os.chown(path, 0, 0)
    assert files.read(FromFile(str(path)), str(path), 4242, None).value.reveal() == b"x"


def test_a_second_name_is_refused(tmp_path: Path) -> None:
    """The other one may be in sight of somebody."""
    path = keep(tmp_path / "token", "x")
    os.link(path, tmp_path / "other")
    assert state_of(path) == "not_private"


def test_a_file_that_may_be_shared(tmp_path: Path) -> None:
    """Where that was said, others may read it, and still nobody may write it."""
    path = keep(tmp_path / "token", "x", 0o644)
    assert read(path, shared_ok=True).value.reveal() == b"x"
    path.chmod(0o664)
    with pytest.raises(CredentialUnavailable):
        read(path, shared_ok=True)


def test_a_file_that_may_not_be_read() -> None:
    """Told apart from one that is not there."""
    if os.geteuid() != 0:
        missing("root", "another account's rights are needed")
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        path = keep(Path(directory) / "token", "x")
        os.seteuid(65534)
        try:
            assert state_of(path) == "unreadable"
        finally:
            os.seteuid(0)


def test_what_has_not_changed_is_not_read(tmp_path: Path) -> None:
    """The same reading, not an equal one; and its bytes are not asked for: the file cannot even be opened."""
    path = keep(tmp_path / "token", "x")
    settled(path)
    known = read(path)
    assert read(path, known) is known
    with leased(path):
        assert read(path, known) is known
    path.touch()
    assert read(path, known) is not known


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Nobody else can open it without waiting: whoever does not wait is refused. fcntl(2), F_SETLEASE."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # tells the holder that somebody wants it
    try:
        with path.open("rb+") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            yield
    finally:
        signal.signal(signal.SIGIO, before)


def test_a_leased_file_does_not_block(tmp_path: Path) -> None:
    """Its owner could keep us waiting for as long as the kernel lets it."""
    path = keep(tmp_path / "token", "x")
    with leased(path):
        assert state_of(path) == "unreadable"


def test_a_change_that_the_clock_does_not_show(tmp_path: Path) -> None:
    """Same size, same times, same inode: what was read right after a change is not believed to be the last."""
    version = FileVersion.of(keep(tmp_path / "token", "other").stat())
    young = Reading(Secret(b"first"), replace(version, age_ns=files._SETTLED_NS - 1))
    assert read(tmp_path / "token", young).value.reveal() == b"other"
    settled = Reading(Secret(b"other"), replace(version, age_ns=files._SETTLED_NS + 1))
    assert read(tmp_path / "token", settled) is settled


@pytest.mark.usefixtures("unhurried")
def test_what_is_written_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where size and times do not tell: a file that was just changed is read until it stays the same."""
    path = keep(tmp_path / "token", "half1234")
    times = path.stat()
    pauses = []

    def sleep(pause_s: float) -> None:
        if not pauses:
            with path.open("rb+") as file:
                file.write(b"whole")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        pauses.append(pause_s)

    monkeypatch.setattr(files.time, "sleep", sleep)
    assert read(path).value.reveal() == b"whole234"


def test_a_directory_that_is_taken_away_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link that led to it leads to the next one by now, which is found."""
    path = projected(tmp_path, "old", "..1")
    follow = os.readlink
    followed = []

    def readlink(*arguments: Any, **named: Any) -> str:
        target = follow(*arguments, **named)
        followed.append(target)
        if followed == ["..data/token", "..1"]:
            replace_projection(tmp_path, "new", "..2", "..1")
        return target

    monkeypatch.setattr(files.os, "readlink", readlink)
    assert read(path).value.reveal() == b"new"
    assert followed[2:] == ["..data/token", "..2"]


def test_times_in_the_future_prove_nothing() -> None:
    """A clock that was set back must not make an old content current."""
    stat = os.stat_result(
        (0o100600, 1, 1, 1, 0, 0, 5, 0, 0, 0), {"st_ctime_ns": time.time_ns() + 10**12, "st_mtime_ns": 0}
    )
    assert not FileVersion.of(stat).settled


def current_while(write: Callable[[int], None], path: Path, value_of: Callable[[bytes], int]) -> None:
    """Each reading shows a value that was not yet replaced when it began, while `write` writes one after the other.

    No reading is overtaken by more than two of them: one that is held up would find no file that stays for long enough.
    """
    done = [0]
    readings, writings = threading.Semaphore(0), threading.Semaphore(2)

    def writer() -> None:
        for number in range(1, ROUNDS + 1):
            readings.acquire()
            write(number)
            done[0] = number
            writings.release()

    write(0)
    known: Reading | None = None
    thread = threading.Thread(target=writer)
    thread.start()
    try:
        for _ in range(ROUNDS):
            assert writings.acquire(timeout=patient(60))
            complete = done[0]
            readings.release()
            known = read(path, known)
            assert complete <= value_of(known.value.reveal()) <= done[0] + 1
    finally:
        readings.release(ROUNDS)
        thread.join()
    assert value_of(read(path, known).value.reveal()) == ROUNDS


@pytest.mark.usefixtures("unhurried")
def test_rewritten_by_rename_while_it_is_read(tmp_path: Path) -> None:
    """As Vault Agent and most tools do: never a failure, never an old value."""
    path = tmp_path / "token"

    def write(number: int) -> None:
        keep(tmp_path / "new", f"{number:06}").rename(path)

    current_while(write, path, int)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("first", [b"", b"2" * 25, b"2" * 49], ids=["emptied", "half", "nearly"])
def test_rewritten_in_place_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    """As a shell does with `>`: who writes is given the time to go on, and what is half written is not the secret."""
    path = keep(tmp_path / "token", "1" * 50)
    known = read(path)
    with path.open("wb", buffering=0) as file:
        file.write(first)
        rest = [b"2" * (50 - len(first))]
        monkeypatch.setattr(time, "sleep", lambda _: rest and file.write(rest.pop()))
        assert read(path, known).value.reveal() == b"2" * 50


@pytest.mark.usefixtures("unhurried")
def test_a_projected_volume_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    """As Kubernetes does: the directory on the way disappears under the reader, and it finds the new one."""
    path = projected(tmp_path, "000000", "..0")

    def write(number: int) -> None:
        if number:
            replace_projection(tmp_path, f"{number:06}", f"..{number}", f"..{number - 1}")

    current_while(write, path, int)


def test_what_systemd_gave_a_service(tmp_path: Path) -> None:
    """$CREDENTIALS_DIRECTORY of whoever asked; readable by a group, as systemd makes it for a service's account."""
    keep(tmp_path / "api-key", "x", 0o440)
    reference = FromCredentialsDirectory("api-key")
    around = Surroundings(os.geteuid(), os.geteuid(), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert sources.read(reference, around).value.reveal() == b"x"
    for lacking in (Surroundings(0, 0, {}), Surroundings(0, 0, {"CREDENTIALS_DIRECTORY": "relative"})):
        with pytest.raises(CredentialUnavailable, match="CREDENTIALS_DIRECTORY"):
            sources.read(reference, lacking)
    with pytest.raises(CredentialUnavailable, match="no such credential"):
        sources.read(FromCredentialsDirectory("other"), around)


def test_a_file_that_opens_and_cannot_be_read() -> None:
    """As on a failing disk: what the kernel says, and nothing hangs. Nothing is mapped where this one begins."""
    with pytest.raises(CredentialUnavailable, match="Input/output error") as caught:
        read("/proc/self/mem")
    assert caught.value.state == "unreadable"
