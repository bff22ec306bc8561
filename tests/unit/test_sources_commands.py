"""`nono_ebpf.credentials.commands`: password managers' programs. Stand-ins play them, and check what they are asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from kit.sandboxes import eventually

from nono_ebpf.credentials import commands, sources
from nono_ebpf.credentials.reading import Surroundings
from nono_ebpf.credentials.references import FromBitwarden, FromOnePassword, parse_reference
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root  # whose directories are root's alone

STAND_IN = """#!/bin/sh
printf '%s\\n' "$0" "$@" > {log}
env > {log}.env
{does}
"""
ITEM = {
    "id": "8A2BC4AB-0779-4b3d-a136-a430e4ae210a",
    "name": "My Item",
    "notes": "noted",
    "login": {"username": "me", "password": "s3cret", "totp": "PIN", "uris": [{"uri": "https://x"}, {"uri": "no"}]},
    "fields": [{"name": "key", "value": "v"}, {"name": "none", "value": None}, {"name": "notes", "value": "no"}],
}
EMPTY = {"id": "2", "name": "my item", "notes": None, "login": None}
OTHER = {"id": "3", "name": "My Item of another", "login": {"password": "of another"}}


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Where programs can be executed: not every machine's /tmp is such a place."""
    if not os.statvfs(tmp_path).f_flag & os.ST_NOEXEC:
        yield tmp_path
        return
    with TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory of PATH that is root's alone."""
    made = tmp_path / "bin"
    made.mkdir(mode=0o755)
    return made


def stand_in(path: Path, name: str, does: str, mode: int = 0o755) -> Path:
    """The program `name`, which writes down what it was asked; where it writes that."""
    log = path.parent / f"{name}.log"
    program = path / name
    program.write_text(STAND_IN.format(log=log, does=does))
    program.chmod(mode)
    return log


def read(text: str, path: Path | str, **environment: str) -> bytes:
    around = Surroundings(0, 0, {"PATH": f"{path}:/usr/bin:/bin"} | environment)
    return sources.read(parse_reference(text, "x"), around).value.reveal()


def refusal(text: str, path: Path | str) -> CredentialUnavailable:
    with pytest.raises(CredentialUnavailable) as caught:
        read(text, path)
    return caught.value


def test_1password_is_asked_for_the_uri(path: Path) -> None:
    """`op read -- URI`, nothing that could be taken for an option; the line end it writes is not part of the secret."""
    log = stand_in(path, "op", "echo s3cret")
    assert read("op://vault/item/section/field", path) == b"s3cret"
    assert log.read_text().splitlines()[1:] == ["read", "--", "op://vault/item/section/field"]


def listing(path: Path, *items: object) -> Path:
    """A `bw` that finds these."""
    return stand_in(path, "bw", f"printf '%s' '{json.dumps(items)}'")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("My Item", b"s3cret"),
        ("MY ITEM/username", b"me"),
        ("8a2bc4ab-0779-4b3d-a136-a430e4ae210a/uri", b"https://x"),
        ("my item/notes", b"noted"),
        ("my item/key", b"v"),
    ],
)
def test_bitwarden_is_asked_for_what_it_finds(text: str, value: bytes, path: Path) -> None:
    """`bw list items --search ITEM`, which never asks the terminal. Of what is found, the item that is called so and
    has it: its own field where bw has no such name for one, without a field the password.
    """
    log = listing(path, OTHER, ITEM, EMPTY)
    assert read(f"bw://{text}", path, HOME="/h") == value
    assert log.read_text().splitlines()[1:] == ["list", "items", "--search", text.partition("/")[0]]
    given = log.with_suffix(".log.env").read_text().splitlines()
    assert {"BW_NOINTERACTION=true", "HOME=/", "BITWARDENCLI_APPDATA_DIR=/h/.config/Bitwarden CLI"} <= set(given)


def test_bitwardens_one_time_code_is_asked_for(path: Path) -> None:
    """Of the item that is meant, by its id: what is kept is not the code."""
    asked = path.parent / "asked"
    items = json.dumps([OTHER, ITEM])
    stand_in(path, "bw", f'echo "$@" >> {asked}; case "$1" in list) printf %s \'{items}\';; *) printf 123456;; esac')
    assert read("bw://My Item/totp", path) == b"123456"
    assert asked.read_text().splitlines()[1:] == [f"get totp {ITEM['id']}"]


@pytest.mark.parametrize(
    ("items", "text", "state"),
    [
        ([], "x", "missing"),
        ([OTHER], "My Item", "missing"),
        ([ITEM], "My Item/other", "missing"),
        ([ITEM], "My Item/none", "missing"),
        ([ITEM], "My Item/login", "missing"),
        ([EMPTY], "My Item", "missing"),
        ([ITEM, ITEM | {"id": "4"}], "My Item", "ambiguous"),
    ],
)
def test_an_item_that_is_not_meant_is_not_taken(items: list[object], text: str, state: str, path: Path) -> None:
    """One of which the name is a part only, one of two, one that has it not."""
    listing(path, *items)
    assert refusal(f"bw://{text}", path).state == state


@pytest.mark.parametrize(
    ("text", "does", "state"),
    [
        ("op://v/i/f", "echo '[ERROR] 2024 You are not currently signed in. hunter2' >&2; exit 1", "locked"),
        ("op://v/i/f", "echo '[ERROR] \"i\" isn'\"'\"'t an item in hunter2' >&2; exit 1", "missing"),
        ("op://v/i/f", "echo 'panic: hunter2' >&2; exit 2", "failed"),
        ("op://v/i/f", "kill -9 $$", "failed"),
        ("op://v/i/f", ":", "empty"),
        ("op://v/i/f", "printf 'a\\nb\\n'", "has_newline"),
        ("bw://i", "echo 'Vault is locked. hunter2' >&2; exit 1", "locked"),
        ("bw://i", "echo 'You are not logged in.' >&2; exit 1", "locked"),
        ("bw://i", "echo 'Not found.' >&2; exit 1", "missing"),
        ("bw://i", ":", "failed"),
        ("bw://i", "printf hunter2", "failed"),
        ("bw://i", "printf '[{}]'", "failed"),
    ],
)
def test_what_a_program_says_becomes_one_word(text: str, does: str, state: str, path: Path) -> None:
    """Its own words are not repeated: they may hold a secret."""
    stand_in(path, text.partition(":")[0], does)
    found = refusal(text, path)
    assert (found.state, "hunter2" in str(found)) == (state, False)


def test_a_program_that_is_not_there(path: Path) -> None:
    """Said as such; a directory, or a file that is no program, is none."""
    assert refusal("op://v/i/f", path).state == "no_program"
    (path / "op").mkdir()
    (path / "bw").write_text("x")
    assert [refusal(text, path).state for text in ("op://v/i/f", "bw://i")] == ["no_program"] * 2


def test_a_program_that_others_could_have_put_there_is_not_run(path: Path, tmp_path: Path) -> None:
    """Not from a directory that they write, nor below one, nor by a link to one, nor one that is theirs, nor from where
    we happen to be: the sandboxed command would have us execute it outside.
    """
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "below").mkdir()
    (tmp_path / "theirs").mkdir()
    log = stand_in(tmp_path / "open" / "below", "op", "echo planted")
    stand_in(tmp_path / "theirs", "op", "echo planted")
    (tmp_path / "open").chmod(0o777)
    os.chown(tmp_path / "theirs", 4242, -1)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "below")
    for place in (tmp_path / "open" / "below", tmp_path / "theirs", tmp_path / "link", "open/below", "", "."):
        assert refusal("op://v/i/f", place).state == "no_program"
    stand_in(path, "op", "echo planted")
    os.chown(path / "op", 4242, -1)
    assert refusal("op://v/i/f", path).state == "no_program"
    (path / "op").unlink()
    (path / "op").symlink_to(tmp_path / "open" / "below" / "op")
    assert refusal("op://v/i/f", path).state == "no_program"
    assert not log.exists()


def test_what_a_program_is_given(path: Path, tmp_path: Path) -> None:
    """Its session, its home and the network's settings; no other variable, and of PATH only what is root's alone, so
    that an interpreter it names (`#!/usr/bin/env node`) is not one that somebody planted.
    """
    log = stand_in(path, "op", "echo x; pwd > $0.cwd; ls -l /proc/self/fd > $0.fds")
    (tmp_path / "planted").mkdir(mode=0o777)
    (tmp_path / "planted").chmod(0o777)
    given = {
        "OP_SESSION_me": "1",
        "HOME": "/h",
        "HTTPS_PROXY": "http://p",
        "OTHER_SECRET": "2",
        "LD_PRELOAD": "",
        "ENV": "/e",
    }
    read("op://v/i/f", f"{path}:{tmp_path}/planted:relative", **given)
    found = dict(line.partition("=")[::2] for line in log.with_suffix(".log.env").read_text().splitlines())
    assert {name: found.get(name) for name in ("OP_SESSION_me", "HOME", "HTTPS_PROXY")} == {
        "OP_SESSION_me": "1", "HOME": "/h", "HTTPS_PROXY": "http://p"
    }  # fmt: skip
    assert not {"OTHER_SECRET", "LD_PRELOAD", "ENV"} & found.keys()
    assert found["PATH"] == f"{path}:/usr/bin:/bin"
    assert (path / "op.cwd").read_text() == "/\n"


def test_a_program_that_takes_too_long_ends_with_all_it_started(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole group, at the deadline; not one of them is left."""
    started_s, told = time.monotonic(), tmp_path / "told"

    def clock() -> float:  # its time begins when all of it runs
        return time.monotonic() if told.exists() else started_s

    monkeypatch.setattr(commands, "DEADLINE_S", 1.0)
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=clock))
    stand_in(path, "op", f"sleep 300 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; : > {told}; wait")
    assert refusal("op://v/i/f", path).state == "timed_out"
    for name in ("self", "child"):
        pid = int((tmp_path / name).read_text())
        assert eventually(lambda pid=pid: not is_alive(pid))


def is_alive(pid: int) -> bool:
    """A process that has ended and that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_leaves_something_running_is_done_when_it_ends(path: Path, tmp_path: Path) -> None:
    """`op` starts a daemon, which inherits the pipe: the secret is there all the same, and the daemon goes on."""
    stand_in(path, "op", f"sleep 300 & echo $! > {tmp_path}/child; echo s3cret")
    assert read("op://v/i/f", path) == b"s3cret"
    child = int((tmp_path / "child").read_text())
    assert is_alive(child)
    os.kill(child, 9)


def test_a_program_that_writes_without_end(path: Path) -> None:
    """Is ended once it has written more than a secret can be."""
    stand_in(path, "op", "exec cat /dev/zero")
    assert refusal("op://v/i/f", path).state == "too_large"


def test_a_program_that_says_without_end_fills_nothing(path: Path) -> None:
    """Its stderr is taken, so that it can go on, and dropped."""
    stand_in(path, "op", "head -c 3000000 /dev/zero >&2; echo s3cret")
    assert read("op://v/i/f", path) == b"s3cret"


def test_a_program_dies_with_whoever_runs_it(path: Path, tmp_path: Path) -> None:
    """Also when that was killed, and could end nothing."""
    stand_in(path, "op", f"echo $$ > {tmp_path}/self; exec sleep 300")
    script = (
        "import sys; from nono_ebpf.credentials import sources\n"
        "from nono_ebpf.credentials.reading import Surroundings\n"
        "from nono_ebpf.credentials.references import parse_reference\n"
        "sources.read(parse_reference('op://v/i/f', 'x'), Surroundings(0, 0, {'PATH': sys.argv[1]}))"
    )
    reader = subprocess.Popen([sys.executable, "-c", script, f"{path}:/usr/bin:/bin"], stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: (tmp_path / "self").exists() and (tmp_path / "self").read_text() != "")
    finally:
        reader.kill()
        reader.wait()
    pid = int((tmp_path / "self").read_text())
    assert eventually(lambda: not is_alive(pid))


@pytest.mark.parametrize(
    ("text", "environment", "file"),
    [
        ("bw://i", {"HOME": "/h"}, "/h/.config/Bitwarden CLI/data.json"),
        ("bw://i", {"HOME": "/h", "XDG_CONFIG_HOME": "/c"}, "/c/Bitwarden CLI/data.json"),
        ("bw://i", {"HOME": "/h", "BITWARDENCLI_APPDATA_DIR": "/d"}, "/d/data.json"),
        ("op://v/i/f", {"HOME": "/h"}, "/h/.config/op/config"),
        ("op://v/i/f", {"HOME": "/h", "OP_CONFIG_DIR": "/d"}, "/d/config"),
    ],
)
def test_a_program_finds_its_settings_where_they_are_hidden(text: str, environment: dict[str, str], file: str) -> None:
    """It is told where that is, and looks nowhere else."""
    reference = parse_reference(text, "x")
    assert isinstance(reference, FromBitwarden | FromOnePassword)
    assert list(map(str, commands.settings_files(reference, environment))) == [file]
    assert str(Path(file).parent) in commands.environment_for_programs(environment).values()
