"""`nono-ebpf doctor`: what is enforced here, what is missing, what to install."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from landlockpy import abi_version
from rich.console import Console
from rich.table import Table

from nono_ebpf.config import load
from nono_ebpf.config.files import read_profile
from nono_ebpf.config.options import Overrides
from nono_ebpf.credential import keyring_state, needs_session, why_unreadable
from nono_ebpf.credentials.references import parse_reference, redacted
from nono_ebpf.kernel.probe import Finding, State, findings
from nono_ebpf.sandbox import sudo
from nono_ebpf.sandbox.landlock import Feature
from nono_ebpf.sandbox.user import NOBODY, find_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nono_ebpf.config.routes import Route
    from nono_ebpf.sandbox.user import User

_TRIAL_TIMEOUT_S = 180  # an emulated machine takes one of them
_COLOURS = {State.YES: "green", State.NO: "red", State.UNKNOWN: "yellow"}


def main(
    *, as_json: bool, profile: str | None = None, credentials: Sequence[str] = (), shared_secrets: bool = False
) -> int:
    """0 when a sandbox works on this machine, 1 when not. With a profile, or names: its credentials are looked at, too.

    Raises ConfigError: the profile has mistakes.
    """
    console = Console()
    overrides = Overrides(profile=profile, credential=tuple(credentials), shared_secrets=shared_secrets)
    with Console(stderr=True).status("trying …"):
        found = [*findings(), *map(_landlock, Feature), _sandbox(), _sudo(), _keyring(), *_credentials(overrides)]
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in found], indent=2) + "\n")
    elif console.is_terminal:
        console.print(_table(found))
    else:
        sys.stdout.write("".join(_line(finding) + "\n" for finding in found))
    return 0 if all(finding.state is State.YES for finding in found if finding.needed) else 1


def _sandbox() -> Finding:
    """The whole of it: a command that does nothing, in a sandbox."""
    enforces = "the command runs confined"
    user = str(sudo.invoking_uid() or NOBODY)
    command = [sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", user, "--", "true"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TRIAL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("a sandbox", State.NO, f"no end after {_TRIAL_TIMEOUT_S} s", enforces, "see the rows above")
    if done.returncode == 0:
        return Finding("a sandbox", State.YES, "ran `true`", enforces)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if os.geteuid() != 0:
        return Finding("a sandbox", State.UNKNOWN, last, enforces, "run it as root to know")
    return Finding("a sandbox", State.NO, last, enforces, "see the rows above")


def _landlock(feature: Feature) -> Finding:
    """Not needed: namespaces and hooks hold without it, but for what README's limits say."""
    name, found = f"Landlock: {feature.name.lower()}", f"ABI {abi_version()}"
    if feature.here:
        return Finding(name, State.YES, found, f"refused: {feature.refuses}", needed=False)
    remedy = f"Linux {feature.release} or newer, with landlock among the security modules (lsm=)"
    return Finding(name, State.NO, found, f"not refused: {feature.refuses}", remedy, needed=False)


def _sudo() -> Finding:
    enforces = "ordinary users can start sandboxes"
    path = shutil.which("sudo")
    if path is None:
        remedy = "apt install sudo, or run nono-ebpf as root"
        return Finding("sudo", State.NO, "not found", enforces, remedy, needed=False)
    return Finding("sudo", State.YES, path, enforces, needed=False)


def _keyring() -> Finding:
    uid = sudo.invoking_uid() or os.geteuid()
    usable, detail = keyring_state(find_user(str(uid)) if uid else None)
    state = State.YES if usable else State.NO
    return Finding("keyring", state, detail, "credentials that are written as a bare name", needed=False)


def _credentials(overrides: Overrides) -> Iterator[Finding]:
    """Of the services that the rules put in use: whether each could be read now, by whoever asks."""
    if not (overrides.profile or overrides.credential):
        return
    asker = _asker()

    def read(path: str) -> bytes:
        with nullcontext() if asker is None else asker.rights():
            return read_profile(path)

    home = str(Path.home()) if asker is None else asker.home
    settings = load.settings(overrides, read, home=home, environment=os.environ)
    for route in settings.routes:
        yield _credential(route, asker, shared_ok=settings.shared_secrets)


def _asker() -> User | None:
    """Who called sudo; None where the calling process has its own account's rights."""
    uid = sudo.invoking_uid()
    return find_user(str(uid)) if uid and os.geteuid() == 0 else None


def _credential(route: Route, asker: User | None, *, shared_ok: bool) -> Finding:
    name, enforces = f"credential {route.name}", f"requests to {route.service.host.pattern} get it"
    if route.reference is None:
        return Finding(name, State.NO, route.unsupported, enforces, needed=False)
    reference = parse_reference(route.reference.value, route.reference.source)
    if asker is not None and needs_session(reference):
        detail = f"{redacted(reference)}: found by variables of your shell; run doctor without sudo to know"
        return Finding(name, State.UNKNOWN, detail, enforces, needed=False)
    failure = why_unreadable(reference, asker, shared_ok=shared_ok)
    if failure is None:
        return Finding(name, State.YES, f"{redacted(reference)} can be read", enforces, needed=False)
    return Finding(name, State.NO, f"{redacted(reference)}: {failure.problem}", enforces, needed=False)


def _line(finding: Finding) -> str:
    text = f"{finding.name}: {finding.state}: {finding.detail}"
    return f"{text}; {finding.remedy}" if finding.remedy else text


def _table(found: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "here", "found", "for"):
        table.add_column(heading)
    for finding in found:
        state = f"[{_COLOURS[finding.state]}]{finding.state}[/]"
        detail = finding.detail + (f"\n[bold]→ {finding.remedy}[/]" if finding.remedy else "")
        table.add_row(finding.name, state, detail, finding.enforces)
    return table
