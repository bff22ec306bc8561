"""A session of an account with a real GNOME Keyring: unlocked, locked as after a login without its password, or none.

Bus and keyring run as `nobody`, die with the test process, and know nothing of the machine's own sessions.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from kit.account import NOBODY
from kit.children import as_user
from kit.expect import require
from kit.patience import patient
from kit.sandboxes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = b"a password of the keyring"
# Nothing is started by being asked for.
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={address}</listen>
<policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy></busconfig>
"""


@contextmanager
def session(place: Path, keyring: Literal["unlocked", "locked", "none"]) -> Iterator[dict[str, str]]:
    """The environment of programs in it. `place`: the account's; the keyring made there is the next session's, too."""
    run = place / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    os.chown(run, NOBODY.pw_uid, NOBODY.pw_gid)
    config = place / "bus.conf"
    config.write_text(_CONFIG.format(address=run / "bus"))
    environment = {
        "HOME": str(place),
        "XDG_RUNTIME_DIR": str(run),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={run}/bus",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }
    with ExitStack() as stack:
        _start(stack, environment, [require("dbus-daemon"), "--nofork", "--nopidfile", f"--config-file={config}"])
        assert eventually(lambda: _listens(run / "bus"), patient(90))
        if keyring != "none":
            unlock = ["--unlock"] if keyring == "unlocked" else []
            daemon = [require("gnome-keyring-daemon"), "--foreground", "--components=secrets", *unlock]
            _start(stack, environment, daemon, PASSWORD if unlock else b"")
            assert eventually(lambda: _answers(environment), patient(90))
        yield environment


def _start(stack: ExitStack, environment: dict[str, str], command: list[str], given: bytes = b"") -> None:
    process = subprocess.Popen(
        [*as_user("nobody"), *command],
        env=environment,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdin is not None
    process.stdin.write(given)
    process.stdin.close()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0  # a session before this one may have left its socket


def _answers(environment: dict[str, str]) -> bool:
    question = [
        "--dest=org.freedesktop.DBus",
        "/",
        "org.freedesktop.DBus.NameHasOwner",
        "string:org.freedesktop.secrets",
    ]
    command = [*as_user("nobody"), "dbus-send", "--session", "--print-reply", *question]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    return "boolean true" in done.stdout
