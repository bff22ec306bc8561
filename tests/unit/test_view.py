"""What the sandbox finds in place of the host's files, and which sockets are looked for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nono_ebpf.errors import ConfigError, NotSupported
from nono_ebpf.kernel import cgroup, mounts
from nono_ebpf.prepare import parse_pinned
from nono_ebpf.sandbox import covers, sockets, view
from nono_ebpf.sandbox.user import User


def test_hosts_keeps_loopback_names_alone() -> None:
    """Any other name is to be asked for, so that it can be judged."""
    hosts = "127.0.0.1 localhost dev.test # mine\n::1 localhost\n10.0.0.1 db.test\n# 127.0.0.1 no\n\n127.0.1.1 me\n"
    kept = view.hosts_for_sandbox(hosts).decode()
    assert "dev.test" in kept
    assert "127.0.1.1 me" in kept
    assert "db.test" not in kept


def test_hosts_always_knows_localhost() -> None:
    """Also where the host's file is empty."""
    assert b"127.0.0.1 localhost" in view.hosts_for_sandbox("")


def test_resolv_conf_keeps_search_list_and_options() -> None:
    """The servers are replaced: every query comes to us anyway."""
    made = view.resolv_conf_for_sandbox("nameserver 10.0.0.2\nsearch corp.test\noptions ndots:2\n# x\n").decode()
    assert made.splitlines() == ["nameserver 127.0.0.1", "search corp.test", "options ndots:2"]


def test_sockets_are_found_by_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name they have now, a few levels deep, links not followed."""
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    monkeypatch.setattr(sockets, "SEARCHED_PLACES", ())  # what others have there is another matter
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "loop").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as first:
        monkeypatch.chdir(deep)  # a socket's path is short
        first.bind("first")
        os.link(deep / "first", tmp_path / "linked")
        user = User("x", 1000, 1000, (), str(tmp_path))
        found = set(sockets.find(user))
    assert {deep / "first", tmp_path / "linked"} <= found
    assert not any("loop" in path.parts for path in found)


def test_the_search_for_sockets_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files the account has."""
    monkeypatch.setattr(sockets, "SEARCHED_MAX", 10)
    for number in range(100):
        (tmp_path / str(number)).mkdir()
    looked: list[str] = []
    entries = sockets._entries
    monkeypatch.setattr(sockets, "_entries", lambda directory: looked.append(directory) or entries(directory))
    assert list(sockets._sockets_in(str(tmp_path))) == []
    assert looked == [str(tmp_path)]


MOUNTS = {
    "unified": "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    "hybrid": "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    "odd name": "30 23 0:26 / /mnt/a\\040b rw shared:1 master:2 - cgroup2 none rw\n",
}


@pytest.mark.parametrize(
    ("table", "path"),
    [("unified", "/sys/fs/cgroup"), ("hybrid", "/sys/fs/cgroup/unified"), ("odd name", "/mnt/a b")],
)
def test_cgroup_v2_is_found_where_it_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, path: str
) -> None:
    """From mountinfo, whatever the layout (proc(5))."""
    (tmp_path / "mountinfo").write_text(MOUNTS[table])
    monkeypatch.setattr(mounts, "TABLE", tmp_path / "mountinfo")
    assert cgroup.hierarchy() == Path(path)


def test_cgroup_v1_alone_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conclusive no, with the way out."""
    (tmp_path / "mountinfo").write_text("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")
    monkeypatch.setattr(mounts, "TABLE", tmp_path / "mountinfo")
    with pytest.raises(NotSupported, match="unified_cgroup_hierarchy"):
        cgroup.hierarchy()


def test_a_hidden_directory_is_found_in_every_mount_that_shows_it() -> None:
    """Of a directory above, of the directory, of a part of it, and of what is mounted below it."""
    disk = [("/", "/"), ("/", "/mnt/all"), ("/home/x/secrets", "/mnt/same"), ("/home/x/secrets/a", "/mnt/part")]
    table = [mounts.Mount("8:1", Path(root), Path(place), "ext4") for root, place in disk]
    table += [mounts.Mount("0:50", Path("/"), Path(place), "tmpfs") for place in ("/home/x/secrets/b", "/mnt/below")]
    table.append(mounts.Mount("0:51", Path("/"), Path("/mnt/other"), "tmpfs"))
    found = covers._elsewhere(table, [Path("/home/x/secrets")])
    names = ("all/home/x/secrets", "below", "part", "same")
    assert found == [Path("/mnt") / name for name in names]


@pytest.mark.parametrize(
    ("path", "replaced"),
    [
        ("/run/user/1000/x", True),
        ("/run/credentials/a.service", True),
        ("/run/media/x/disk", False),
        ("/tmp/tmux-1000/x", True),
        ("/tmp/tmux-1001/x", False),
        ("/home/x", False),
    ],
)
def test_the_view_knows_what_it_replaces(path: str, replaced: bool) -> None:
    """There nothing of the host is left to be hidden."""
    assert view.is_replaced(User("x", 1000, 1000, (), "/home/x"), Path(path)) is replaced


def test_pinned_addresses_keep_their_order() -> None:
    """Several for one name, IPv6 with or without brackets, names in canonical form."""
    given = ["Db.Test.:10.0.0.1", "db.test:[2001:db8::1]", "x.test:2001:db8::2"]
    assert parse_pinned(given) == {"db.test": ["10.0.0.1", "2001:db8::1"], "x.test": ["2001:db8::2"]}


@pytest.mark.parametrize("entry", ["", "x", "x.test:", ":10.0.0.1", "x.test:10.0.0", "x y:10.0.0.1"])
def test_a_malformed_pin_is_named(entry: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ConfigError, match="--resolve"):
        parse_pinned([entry])
