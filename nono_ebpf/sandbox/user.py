"""As whom the command runs: the invoking user, never root. passwd(5), group(5), sudo(8)."""

from __future__ import annotations

import os
import pwd
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nono_ebpf.errors import ConfigError
from nono_ebpf.sandbox import sudo

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534  # the kernel's overflow uid, an account everywhere
_WAY_OUT = "name the account to run it as with --user NAME, or start nono-ebpf as an ordinary user (it uses sudo)"


@dataclass(frozen=True, slots=True)
class User:
    """An account that is not root."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @contextmanager
    def rights(self) -> Iterator[None]:
        """The file system is asked as this account; for root, which has its own rights back afterwards."""
        groups = os.getgroups()
        os.setgroups(self.groups)
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def find_user(name: str | None) -> User:
    """The account called `name` (or with that number); without a name, the one that called sudo.

    Raises:
        ConfigError: there is no such account, or it is root: uid 0 owns the kernel's files even without capabilities.
    """
    invoking = sudo.invoking_uid()
    entry = _entry(name if name is not None else str(invoking))
    if invoking and entry.pw_uid != invoking:
        raise ConfigError("--user", "through sudo, the command runs as the one who called it", hint="leave it out")
    if entry.pw_uid == 0:
        raise ConfigError("--user", "a sandboxed command never runs as root", hint=_WAY_OUT)
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups), entry.pw_dir)


def _entry(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError) as error:
        raise ConfigError("--user", f"there is no account {name!r}") from error
