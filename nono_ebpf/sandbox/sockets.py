"""Unix sockets of the host: where they lie, and how they are covered. unix(7).

A mask over a single socket falls off when its daemon restarts and makes the file anew, so directories that are known to
hold sockets are covered as a whole, and whatever else listens on a path is masked one by one.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import libc, mounts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from nono_ebpf.sandbox.user import User

RUN = Path("/run")
# Where programs put sockets under names we cannot know before they do.
_OWN_DIRECTORIES = ("/tmp/tmux-{uid}", "/tmp/screen-{uid}")  # noqa: S108  # theirs
_SHARED_DIRECTORIES = ("/tmp/.X11-unix", "/tmp/.ICE-unix")  # noqa: S108  # theirs
# Where else they lie, and how far we look.
SEARCHED_PLACES = ("/tmp", "/var/tmp")  # noqa: S108  # theirs
SEARCHED_LEVELS, SEARCHED_MAX = 3, 50_000


def find(user: User) -> tuple[Path, ...]:
    """Unix sockets that the account could find: those bound in this network namespace, by the name they were bound to
    (proc(5), /proc/net/unix), and those that lie where programs keep them. Neither list is enough: a socket may have
    been linked to another name, or bound by a relative one, or in another namespace.
    """
    lines = Path("/proc/net/unix").read_text(errors="surrogateescape").split("\n")[1:]
    bound = {Path("/" + line.partition(" /")[2]) for line in lines if " /" in line}
    places = {user.home, *SEARCHED_PLACES, os.environ.get("TMPDIR", "/tmp")}  # noqa: S108  # the sockets' choice
    lying = {found for place in places if place != "/" for found in _sockets_in(place)}
    return tuple(sorted(bound | lying))


def _sockets_in(place: str) -> Iterator[Path]:
    """At most a few levels deep and SEARCHED_MAX entries: the account's own files are any number."""
    waiting, left = [(place, 0)], SEARCHED_MAX
    while waiting and left > 0:
        directory, depth = waiting.pop(0)
        for entry in _entries(directory):
            left -= 1
            if entry.is_dir(follow_symlinks=False):
                if depth < SEARCHED_LEVELS:
                    waiting.append((entry.path, depth + 1))
            elif not entry.is_file(follow_symlinks=False) and _is_socket(entry.path):
                yield Path(entry.path)


def _is_socket(path: str) -> bool:
    try:
        return Path(path).is_socket()
    except OSError:  # a link into a file system that root may not read
        return False


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:  # gone, or a file system that root may not read
        return []


def directories(user: User) -> dict[Path, int]:
    """Handles of them. Where they are missing they are made: who listens there first may do so while the sandbox runs.

    Their names are the account's to change, so nothing is looked up by them again.
    """
    own = [Path(template.format(uid=user.uid)) for template in _OWN_DIRECTORIES]
    shared = [Path(directory) for directory in _SHARED_DIRECTORIES]
    with user.rights():
        _make(own, 0o700)
    _make(shared, 0o1777)
    handles = {}
    for directory in (*own, *shared):
        with suppress(OSError):  # something else than a directory, which its daemon would not take
            handles[directory] = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return handles


def _make(directories: Iterable[Path], mode: int) -> None:
    umask = os.umask(0)
    for directory in directories:
        with suppress(OSError):  # it is there, or is something else, which its daemon would not take
            directory.mkdir(mode=mode)
    os.umask(umask)


def replace_directory(work: Path, fd: int, user: User, kept: Mapping[Path, int]) -> None:
    """Filled where nobody else's hands are, then put over the directory."""
    made = work / "sockets"
    made.mkdir()
    mounts.fresh(made, f"mode=0700,uid={user.uid},gid={user.gid}")
    for path, handle in kept.items():
        mounts.bind_handle(handle, made / path)
    mounts.bind_over(made, fd)
    libc.unmount(str(made))
    made.rmdir()


def aliases(hidden: Iterable[Path]) -> list[Path]:
    """Where else what is hidden and /run can be seen: in other mounts of their file systems."""
    table = mounts.read()
    outside = [path for path in hidden if not path.is_relative_to(RUN)]
    found = {alias for path in (RUN, *outside) for alias in mounts.aliases(table, path)}
    return sorted(path for path in found if not path.is_relative_to(RUN))


def hold_in_place(user: User, paths: Iterable[Path]) -> None:
    """A mask goes where a directory above it goes, and what it hid is in sight for the next sandbox. A mount point
    cannot be renamed, so each directory that the account could rename is mounted on itself. rename(2), EBUSY.
    """
    real = {Path(os.path.realpath(path)) for path in paths if path.exists()}
    above = {parent for path in real for parent in path.parents if parent != parent.parent}
    with user.rights():
        writable = {
            parent for parent in {each.parent for each in above} if os.access(parent, os.W_OK, effective_ids=True)
        }
    for directory in sorted(above):
        with suppress(FileNotFoundError):  # it went with what was in it, as temporary ones do
            if _can_rename(user, directory, writable):
                _hold(directory)


def _can_rename(user: User, directory: Path, writable: Collection[Path]) -> bool:
    parent = directory.parent
    # Who owns a directory can make it writable.
    open_to_it = parent in writable or parent.stat().st_uid == user.uid
    return open_to_it and not _is_kept_by_sticky_bit(user, directory)


def _hold(directory: Path) -> None:
    try:
        libc.mount(str(directory), str(directory), None, libc.MS_BIND | libc.MS_REC)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise


def _is_kept_by_sticky_bit(user: User, directory: Path) -> bool:
    """Only its owner may rename what is in a directory such as /tmp."""
    parent = directory.parent.stat()
    return bool(parent.st_mode & stat.S_ISVTX) and user.uid not in {parent.st_uid, directory.stat().st_uid}


def is_replaced(user: User, path: Path) -> bool:
    """Whether it lies in a directory that `directories` covers."""
    own = [Path(template.format(uid=user.uid)) for template in _OWN_DIRECTORIES]
    return any(path.is_relative_to(directory) for directory in (*own, *map(Path, _SHARED_DIRECTORIES)))


def mask(paths: Iterable[Path]) -> None:
    """Files read as empty and take no writing or connecting; directories are empty. What is gone since is left out."""
    for path in paths:
        try:
            if path.is_dir():
                mounts.fresh(path, "mode=0755")
            elif path.exists():
                libc.mount("/dev/null", str(path), None, libc.MS_BIND)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
