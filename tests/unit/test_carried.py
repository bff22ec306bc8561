"""`nono_ebpf.sandbox.carried`: what a process leaves to the one that it becomes, and from whom that takes it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.errors import ConfigError
from nono_ebpf.sandbox import carried

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_carried_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment without its secrets, and each of these when it is asked for; no later program has them."""
    executed: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda _path, arguments, _environment: executed.append(arguments))
    carried.start_again(["run", "true"], {"A": "1", "KEY": "s3cret"}, 0o27, {"KEY"})
    option = executed[0][5]
    found = carried.receive(option.removeprefix(f"{carried.FLAG}="))
    assert (found.environment, found.umask, found.names) == ({"A": "1"}, 0o27, {"KEY"})
    assert found.variable("KEY") == found.variable("KEY") == b"s3cret"
    assert "s3cret" not in " ".join(executed[0])
    secrets_fd = int(option.rpartition(":")[2])
    assert not os.get_inheritable(secrets_fd)
    os.close(secrets_fd)


@pytest.mark.parametrize("fds", [(0, 1), (2, 2), (-1, 3)])
def test_what_somebody_else_wrote_there_is_refused(fds: tuple[int, int]) -> None:
    """No stream of the caller's is read or closed."""
    with pytest.raises(ConfigError, match="for nono-ebpf's own use"):
        carried.receive(f"{fds[0]}:{fds[1]}")
    for stream in range(3):
        os.fstat(stream)


def test_a_file_is_none_of_ours(tmp_path: Path) -> None:
    """Only memory that this program has made."""
    with (tmp_path / "nono-ebpf").open("w+b") as file:
        text = f"{file.fileno()}:{file.fileno()}"
        with pytest.raises(ConfigError):
            carried.receive(text)
        os.fstat(file.fileno())
