"""sudo's rights are for the sandbox: nothing else is to be had by them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from kit.account import AS_NOBODY, PROGRAM, STARTED, assert_refused, finish, with_file
from kit.expect import require

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.kernel]


@pytest.fixture
def sudo(tmp_path: Path) -> list[str]:
    """What to put before a command on a machine where everybody may use sudo for everything, without a password."""
    require("sudo")
    sudoers = tmp_path / "sudoers"
    sudoers.write_text("Defaults env_reset\nALL ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    return with_file(sudoers, "/etc/sudoers")


def _through_sudo(sudo: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """`nono-ebpf run` called by nobody."""
    return finish([*sudo, *AS_NOBODY, "sudo", "-n", "--", *PROGRAM, "run", *options, "--", "echo", STARTED])


@pytest.mark.bypass("sudo")
def test_an_ordinary_user_runs_as_nobody_else(sudo: list[str]) -> None:
    """sudo's rights are for the sandbox, not for becoming another person in it."""
    assert _through_sudo(sudo).stdout == f"{STARTED}\n"
    assert _through_sudo(sudo, "--user", "nobody").stdout == f"{STARTED}\n"
    assert_refused(_through_sudo(sudo, "--user", "daemon"), "as the one who called it")


@pytest.mark.bypass("sudo")
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


@pytest.mark.bypass("sudo")
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
