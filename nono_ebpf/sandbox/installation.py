"""Where the program itself lies: root executes it, so the sandboxed account must not be able to change it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nono_ebpf.sandbox.user import User


def check(user: User) -> None:
    """What root executes must not be the account's to change: a sandboxed command would rewrite it for the next run."""
    package = Path(__file__).resolve().parents[1]
    programs = [package, *package.rglob("*"), Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable)]
    for entry in map(Path, sys.path):
        programs += [entry, *entry.iterdir()] if entry.is_dir() else []
    named = {place for path in programs for step in _steps(path) for place in (step, *step.parents)}
    # A link may lead nowhere; who could put something there is told by the directories above.
    places = {place for place in named if os.path.lexists(place)}
    with user.rights():
        writable = {place for place in places if os.access(place, os.W_OK, effective_ids=True)}
    changeable = [place for place in places if _may_change(user, place, writable=place in writable)]
    if changeable:
        problem = f"{user.name} may change {min(changeable)}, which root executes"
        raise ConfigError("the installation", problem, hint="install it where only root writes: `sudo make install`")


def _steps(path: Path) -> Iterator[Path]:
    """`path`, and where each link on the way leads."""
    yield path
    yield path.resolve()
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        yield path


def _may_change(user: User, place: Path, *, writable: bool) -> bool:
    found = place.lstat()
    if found.st_uid == user.uid:
        return True
    # Of what is in a sticky directory only the own, and that is looked at by itself.
    return writable and not (stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX)
