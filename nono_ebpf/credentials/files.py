"""`file://`: a file that is looked at anew for every request, and read when it has changed.

Its directory is opened as any other. Its own name is followed by hand: through links that stay within that directory,
as Kubernetes projects volumes (`token` → `..data/token`, `..data` → a directory that is replaced), and through no
others. What lies there is looked at with O_PATH first, so a pipe or a device is never opened. open(2), symlink(7).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nono_ebpf.credentials.reading import BUFFER_BYTES, Reading, checked, unavailable
from nono_ebpf.credentials.secret import MAX_BYTES
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nono_ebpf.credentials.references import Reference
    from nono_ebpf.credentials.secret import Secret

_PATH_ONLY: Final = os.O_PATH | os.O_CLOEXEC
_LINKS_MAX: Final = 16
# A directory that a link led to may be taken away while we are on the way; then the link leads elsewhere.
_WALKS: Final = 3
# Whoever writes into a file in place goes on within the pause; whoever has emptied it fills it within half a second.
_PAUSE_S, _JUST_NOW_NS = 0.003, 100_000_000
_PATIENCE_S, _EMPTIED_NS = 0.6, 500_000_000
_LOOKS_MIN: Final = 3  # also when we were not scheduled for as long
# Two changes within one step of the file system's clock look the same. The coarsest step is FAT's, two seconds.
_SETTLED_NS: Final = 2_500_000_000


@dataclass(frozen=True, slots=True)
class FileVersion:
    """What tells one content of a file from the next, and the file's age when that was looked at."""

    dev: int
    ino: int
    mtime_ns: int
    ctime_ns: int
    size: int
    age_ns: int = field(compare=False)

    @classmethod
    def of(cls, found: os.stat_result) -> FileVersion:
        """As it is now."""
        age_ns = time.time_ns() - found.st_ctime_ns
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, age_ns)

    @property
    def settled(self) -> bool:
        """Whether a change since would show."""
        return self.age_ns > _SETTLED_NS

    @property
    def just_now(self) -> bool:
        """Whether somebody may be writing it."""
        return self.age_ns < _JUST_NOW_NS


def read(reference: Reference, path: str, owner: int, known: Reading | None, *, shared_ok: bool = False) -> Reading:
    """What the file holds; `known` itself where it certainly has not changed since. `owner`: whose it may be, besides
    root's. `shared_ok`: others may read it.

    Raises:
        CredentialUnavailable: there is nothing that can be used.
    """
    failure: CredentialUnavailable | None = None
    end = time.monotonic() + _PATIENCE_S
    looks = 0
    while looks < _LOOKS_MIN or time.monotonic() < end:
        looks += 1
        with _found(reference, path) as fd:
            version = _judged(reference, os.fstat(fd), owner, shared_ok=shared_ok)
            if known is not None and known.version == version and known.version.settled:
                return known
            try:
                value = _content(reference, fd)
                if _is_whole(reference, fd, value, version):
                    return Reading(value, version)
            except CredentialUnavailable as error:
                if error.state != "empty" or version.age_ns > _EMPTIED_NS:
                    raise
                failure = error
        time.sleep(_PAUSE_S)
    raise failure or unavailable(reference, "failed", "it changes faster than it can be read")


@contextmanager
def _found(reference: Reference, path: str) -> Iterator[int]:
    """An O_PATH descriptor of the file itself."""
    with ExitStack() as stack:
        try:
            yield _walked(reference, path, stack)
        except OSError as error:
            raise _refused(reference, error) from error


@lru_cache(maxsize=64)  # a path is the same for each request
def _split(path: str) -> tuple[str, str]:
    """The directory, and the name in it."""
    whole = Path(path)
    return str(whole.parent), whole.name


def _walked(reference: Reference, path: str, stack: ExitStack) -> int:
    for _ in range(_WALKS - 1):
        try:
            return _walk(reference, path, stack)
        except FileNotFoundError:
            continue
    return _walk(reference, path, stack)


def _walk(reference: Reference, path: str, stack: ExitStack) -> int:
    """Raises OSError, or CredentialUnavailable where a link leads out of the directory."""
    directory, name = _split(path)
    here = _opened(stack, directory, _PATH_ONLY | os.O_DIRECTORY)
    steps, links = [name], 0
    while steps:
        fd = _opened(stack, steps.pop(0), _PATH_ONLY | os.O_NOFOLLOW, here)
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            here = fd
            continue
        target, links = os.readlink("", dir_fd=fd), links + 1
        if target.startswith("/") or ".." in target.split("/") or links > _LINKS_MAX:
            raise unavailable(reference, "symlink", "it is a symbolic link to outside of its directory")
        steps = [step for step in target.split("/") if step not in {"", "."}] + steps
    return here


def _opened(stack: ExitStack, path: str, flags: int, directory: int | None = None) -> int:
    fd = os.open(path, flags, dir_fd=directory)
    stack.callback(os.close, fd)
    return fd


def _judged(reference: Reference, found: os.stat_result, owner: int, *, shared_ok: bool) -> FileVersion:
    if not stat.S_ISREG(found.st_mode):
        raise unavailable(reference, "not_a_file", "it is not a regular file")
    if found.st_uid not in {0, owner}:
        raise unavailable(reference, "not_private", "it belongs to another account")
    if found.st_nlink > 1:
        raise unavailable(reference, "not_private", "it has a second name (hard link)")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise unavailable(reference, "not_private", "other accounts may write it; chmod 600 it")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and not shared_ok:
        problem = "it is open to other accounts; chmod 600 it, or take it with --shared-secrets"
        raise unavailable(reference, "not_private", problem)
    if found.st_size > BUFFER_BYTES:
        raise unavailable(reference, "too_large", f"it is larger than {MAX_BYTES} bytes")
    return FileVersion.of(found)


def _content(reference: Reference, path_fd: int) -> Secret:
    """Raises CredentialUnavailable; OSError where it may not be read."""
    fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    buffer, length = bytearray(BUFFER_BYTES), 0
    try:
        while got := os.readv(fd, [memoryview(buffer)[length:]]):
            length += got
        return checked(reference, memoryview(buffer)[:length])
    finally:
        os.close(fd)


def _is_whole(reference: Reference, path_fd: int, value: Secret, version: FileVersion) -> bool:
    """Whether nobody is writing into the file. One that was replaced meanwhile is as whole as it was."""
    if version.just_now:
        time.sleep(_PAUSE_S)
        if _content(reference, path_fd) != value:
            return False
    found = os.fstat(path_fd)
    return (found.st_mtime_ns, found.st_size) == (version.mtime_ns, version.size)


def _refused(reference: Reference, error: OSError) -> CredentialUnavailable:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return unavailable(reference, "missing", "there is no such file")
    if error.errno == errno.ELOOP:
        return unavailable(reference, "symlink", "its directory is behind links that never end")
    return unavailable(reference, "unreadable", f"it cannot be read: {error.strerror}")
