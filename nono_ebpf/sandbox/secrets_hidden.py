"""Which directories have to be empty inside so that the command never reads a secret kept in a file."""

from __future__ import annotations

import os
import shlex
import stat
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import nono_ebpf
from nono_ebpf.errors import ConfigError
from nono_ebpf.sandbox import sockets, sudo, view

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nono_ebpf.sandbox.user import User

SECRETS: Final = ".config/nono-ebpf/secrets"  # below a home
_LINKS_MAX: Final = 40  # path_resolution(7)
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
# Without these, programs do not find themselves or each other; the file system hierarchy standard, hier(7).
_SYSTEM: Final = frozenset(
    ("/", "/boot", "/etc", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/var",
     "/etc/alternatives", "/etc/pki", "/etc/ssl", "/etc/ssl/certs", "/gnu", "/gnu/store", "/nix", "/nix/store",
     "/run/user", "/var/cache", "/var/lib", "/var/local", "/var/log", "/var/opt", "/var/spool",
     *sockets.SEARCHED_PLACES)
)  # fmt: skip
_SYSTEM_TREES: Final = ("/bin", "/dev", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr")
_OF_HOME: Final = ("", ".cache", ".config", ".local", ".local/bin", ".local/share", ".local/state", "bin")


@dataclass(frozen=True, slots=True)
class _Way:
    """How a path leads to its file: `links` are the directories in which a symbolic link was followed."""

    file: Path
    links: tuple[Path, ...]

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where the file can be given another content: where it lies, and where links lead to it from."""
        return tuple(dict.fromkeys((self.file.parent, *self.links)))


def secret_directories(path: Path, user: User, needed: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The directories (real paths) to be hidden from the command so that it never reads the secret at `path`, nor what
    takes its place there. The file itself need not be there yet.

    Empty, when the account can neither read the file nor come to: neither the file nor a directory on the way is its
    own, it may write to none of these directories but such as /tmp, and the file's mode has nothing for others. Who
    puts a new secret there has to keep it so.

    Otherwise the directory that the file lies in and, where symbolic links lead to it, each directory that holds one
    of these, since a link can be made to lead elsewhere. Left out are those that programs cannot do without and that
    neither belong to the account nor can be written by it (as /var, which holds the link /var/run): who may change
    them is root.

    `needed`: what the command has to find besides its home and its working directory, such as its program.

    Raises:
        ConfigError: one of them cannot be hidden without breaking the command, or is missing; or the file has a
            second name (a hard link), which hiding would leave.
    """
    try:
        with user.rights() if sudo.invoking_uid() else nullcontext():
            way = _resolve(path)
            _check_there(path, way)
    except OSError as error:
        raise ConfigError(str(path), str(error.strerror)) from error
    if _is_closed(way, user):
        return ()
    _check_single(path, way.file)
    kept = _kept(user, needed)
    directories = []
    for directory in way.directories:
        if not (reason := _why_not(directory, kept)):
            directories.append(directory)
        elif not view.is_replaced(user, directory) and (directory == way.file.parent or _is_open(directory, user)):
            raise _cannot_hide(path, directory, way, f"{directory}, which {reason}", user)
    return tuple(directories)


def _resolve(path: Path) -> _Way:
    """realpath(3) that says where it came by."""
    waiting, here, links = list(reversed(path.parts[1:])), Path("/"), []
    while waiting:
        part = waiting.pop()
        there = here.parent if part == ".." else here / part
        if part == ".." or not there.is_symlink():
            here = there
            continue
        links.append(here)
        if len(links) > _LINKS_MAX:
            raise ConfigError(str(path), "too many symbolic links lead from one to the next")
        target = there.readlink()
        if target.is_absolute():
            here = Path("/")
        waiting += reversed([part for part in target.parts if part != "/"])
    return _Way(here, tuple(dict.fromkeys(links)))


def _check_there(path: Path, way: _Way) -> None:
    if way.file.is_dir():
        raise ConfigError(str(path), "a secret is kept in a file; this is a directory")
    if not way.file.parent.is_dir():
        hint = f"make it before: mkdir -m 700 {shlex.quote(str(way.file.parent))}"
        raise ConfigError(str(path), f"the directory {way.file.parent} is missing", hint=hint)


def _is_closed(way: _Way, user: User) -> bool:
    try:
        found = way.file.stat()
    except FileNotFoundError:
        return False
    ways = {parent for directory in way.directories for parent in (directory, *directory.parents)}
    return (
        found.st_uid != user.uid
        and not found.st_mode & _OTHERS
        and not any(_is_open(directory, user) for directory in ways)
    )


def _is_open(directory: Path, user: User) -> bool:
    """Whether the account can change others' files in it, or give itself the right to. Not in one such as /tmp."""
    found = directory.stat()
    if found.st_uid == user.uid:
        return True
    if found.st_mode & stat.S_ISVTX:
        return False
    with user.rights():
        return os.access(directory, os.W_OK, effective_ids=True)


def _check_single(path: Path, file: Path) -> None:
    if file.exists() and file.stat().st_nlink > 1:
        raise ConfigError(
            str(path),
            "the file has a second name (a hard link), by which the command could read it",
            hint=f"make it a file of its own: cp -p {file} {file}.new && mv {file}.new {file}",
        )


def _kept(user: User, needed: Iterable[Path]) -> dict[Path, str]:
    """What must not go, and what it is to the person who reads why."""
    home = Path(os.path.realpath(user.home))
    kept = {Path(os.path.realpath(each)): "the command needs" for each in needed}
    kept[Path(nono_ebpf.__file__).resolve().parent] = "holds nono-ebpf itself"
    kept |= {Path(os.path.realpath(home / name)): "belongs to your home directory" for name in _OF_HOME}
    kept[home] = "is your home directory"
    kept[Path.cwd()] = "is the working directory"
    return kept


def _why_not(directory: Path, kept: Mapping[Path, str]) -> str:
    """Why `directory` cannot be hidden; empty when it can."""
    if str(directory) in _SYSTEM or any(map(directory.is_relative_to, _SYSTEM_TREES)):
        return "is the system's"
    if directory in kept:
        return kept[directory]
    above = [path for path in kept if path.is_relative_to(directory)]
    return f"holds {above[0]}" if above else ""


def _cannot_hide(path: Path, directory: Path, way: _Way, where: str, user: User) -> ConfigError:
    if directory != way.file.parent:
        hint = f"name it by its real path, {way.file}"
        return ConfigError(str(path), f"it is found by a symbolic link in {where} and cannot be hidden", hint=hint)
    own = f"{user.home}/{SECRETS}"
    move = "install -m 600" if any(map(way.file.is_relative_to, _SYSTEM_TREES)) else "mv"
    hint = f"keep it in a directory of its own: mkdir -p -m 700 {own} && {move} {way.file} {own}/"
    return ConfigError(str(path), f"it lies in {where} and cannot be hidden", hint=hint)
