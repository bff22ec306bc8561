"""An ordinary user who starts nono-ebpf: through sudo, so that everything is read with that account's rights."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from kit import asking
from kit.account import AS_NOBODY, PROGRAM, finish, with_file
from kit.checkout import opened
from kit.expect import require
from kit.inside import COMMAND, Agent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from kit.services import Services


def through_sudo(work: Path, arguments: Sequence[str]) -> list[str]:
    """`nono-ebpf` with these arguments, called by `nobody`, who may use sudo. `work` is root's."""
    require("sudo")
    sudoers = work / "sudoers"
    if not sudoers.exists():
        sudoers.write_text("Defaults env_reset\nALL ALL=(ALL) NOPASSWD: ALL\n")
        sudoers.chmod(0o440)
    return opened([*with_file(sudoers, "/etc/sudoers"), *AS_NOBODY, *PROGRAM, *arguments])


def agent(
    services: Services,
    options: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    enter: Callable[[Sequence[str]], list[str]] | None = None,
) -> Agent:
    """A sandbox of that user's, in which functions of `kit.asking` can be called.

    `log` lies where the user may write. `enter` puts a command onto the machine.
    """
    arguments = ["run", *options, "--audit-log", str(log), "--", *COMMAND]
    command = (enter or services.machine.enter)(through_sudo(services.work, arguments))
    return Agent(command, {"kit": "", asking.__name__: inspect.getsource(asking)}, env=environment)


def doctor(services: Services, options: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What `nono-ebpf doctor` tells that user of each credential, by its name."""
    command = services.machine.enter(opened([*AS_NOBODY, *PROGRAM, "doctor", "--json", *options]))
    found = json.loads(finish(command, env=environment).stdout)
    return {each["name"].removeprefix("credential "): each for each in found if each["name"].startswith("credential ")}
