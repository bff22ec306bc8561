"""`nono_ebpf.credentials.isolated`: work in a process of its own, whatever becomes of it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

import pytest
from kit.sandboxes import Victim, eventually

from nono_ebpf.credentials.isolated import Attempt
from nono_ebpf.credentials.reading import unavailable
from nono_ebpf.credentials.references import Named
from nono_ebpf.credentials.secret import MAX_BYTES, Secret
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REFERENCE = Named("github_token")


def refusal(work: Callable[[], Secret], deadline_s: float | None = None) -> CredentialUnavailable:
    with pytest.raises(CredentialUnavailable) as caught:
        Attempt(REFERENCE, deadline_s, work).result()
    return caught.value


@pytest.mark.parametrize("value", [b"", b"x", os.urandom(MAX_BYTES)], ids=len)
def test_its_result_arrives(value: bytes) -> None:
    """Whatever the bytes, and as many as a secret can have: more than a pipe holds."""
    assert Attempt(REFERENCE, None, lambda: Secret(value)).result().reveal() == value


def test_it_runs_elsewhere() -> None:
    """In another process, of which nothing is left."""
    child = int(Attempt(REFERENCE, None, lambda: Secret(str(os.getpid()).encode())).result().reveal())
    assert child != os.getpid()
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)


def test_a_refusal_arrives_as_it_was() -> None:
    """Name, state and problem."""

    def work() -> Secret:
        raise unavailable(Named("other"), "locked", "the keyring is locked")

    found = refusal(work)
    assert (found.name, found.state, found.problem) == ("other", "locked", "the keyring is locked")


def test_what_hangs_is_ended_by_the_kernel() -> None:
    """At its deadline, and it is said how long that was."""

    def work() -> Secret:
        signal.pause()
        return Secret(b"")

    found = refusal(work, 1.0)
    assert (found.state, "1 s" in found.problem) == ("timed_out", True)


@pytest.mark.parametrize("crash", [lambda: os._exit(3), lambda: os.kill(os.getpid(), 9)])
def test_what_crashes_has_failed(crash: Callable[[], object]) -> None:
    """With status, or by a signal."""

    def work() -> Secret:
        crash()
        return Secret(b"")

    assert refusal(work).state == "failed"


def test_an_error_of_a_library_is_named_and_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """Its text may hold a secret. Nor is shown what it prints."""

    def work() -> NoReturn:
        os.write(1, b"hunter2")  # to nowhere
        raise RuntimeError("hunter2")

    found = refusal(work)
    assert (found.state, "RuntimeError" in str(found), "hunter2" in str(found)) == ("failed", True, False)
    assert "hunter2" not in "".join(capfd.readouterr())


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """A keyring that hangs leaves nobody behind."""
    told = tmp_path / "pid"

    def work() -> Secret:
        told.write_text(str(os.getpid()))
        told.rename(tmp_path / "told")
        signal.pause()
        return Secret(b"")

    parent = os.fork()
    if not parent:
        Attempt(REFERENCE, None, work)
        signal.pause()
    try:
        assert eventually((tmp_path / "told").exists)
        child = Victim(int((tmp_path / "told").read_text()))
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    assert child.ended()
    child.close()
