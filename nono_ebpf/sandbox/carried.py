"""Start again without the variables that are secrets: a process's environment stays in its memory for as long as it
lives, and pid 1 of the sandbox is a copy of ours.

What there was goes along in memory with a descriptor: the rest of the environment, to be read at once, and the secrets,
to be read when whoever needs them is there. memfd_create(2), execve(2).
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

FLAG = "--carried"
_NAME = "nono-ebpf"


class _Rest(msgspec.Struct, frozen=True):
    environment: dict[bytes, bytes]
    umask: int


@dataclass(frozen=True, slots=True)
class Carried:
    """What the process before this one had. Owns the descriptor of the secrets, which no program inherits."""

    environment: dict[str, str]
    umask: int
    names: frozenset[str]
    _fd: int

    def variable(self, name: str) -> bytearray:
        """The secret that the variable `name`, one of `names`, has; the caller's to overwrite."""
        with _secrets(self._fd) as found:
            return bytearray(found[os.fsencode(name)])


def start_again(
    arguments: Sequence[str], environment: Mapping[str, str], umask: int, secrets: Collection[str]
) -> NoReturn:
    """Become the same program with the same arguments, `secrets` being names in `environment`."""
    encoded = {os.fsencode(name): os.fsencode(text) for name, text in environment.items()}
    taken = {name: encoded.pop(name) for name in map(os.fsencode, secrets)}
    fds = [_memory(msgspec.msgpack.encode(each)) for each in (_Rest(encoded, umask), taken)]
    command, *rest = arguments
    again = [sys.executable, "-I", "-m", "nono_ebpf", command, f"{FLAG}={fds[0]}:{fds[1]}", *rest]
    own = {name: text for name, text in os.environb.items() if name not in taken}
    os.execve(sys.executable, again, own)  # noqa: S606  # no shell


def receive(text: str) -> Carried:
    """What `start_again` has sent along.

    Raises:
        ConfigError: somebody else wrote the option.
    """
    try:
        rest_fd, secrets_fd = map(_ours, text.split(":"))
        os.set_inheritable(secrets_fd, False)
        with open(rest_fd, "rb") as file:  # noqa: PTH123  # a descriptor
            rest = msgspec.msgpack.decode(file.read(), type=_Rest)
        with _secrets(secrets_fd) as found:
            names = frozenset(map(os.fsdecode, found))
    except (OSError, ValueError) as error:
        raise ConfigError(FLAG, "is for nono-ebpf's own use", hint="leave it out") from error
    environment = {os.fsdecode(name): os.fsdecode(value) for name, value in rest.environment.items()}
    return Carried(environment, rest.umask, names, secrets_fd)


@contextmanager
def _secrets(fd: int) -> Iterator[dict[bytes, memoryview]]:
    """By the names of their variables, overwritten behind it."""
    content = bytearray(os.fstat(fd).st_size)
    os.preadv(fd, [content], 0)
    try:
        yield msgspec.msgpack.decode(content, type=dict[bytes, memoryview])
    finally:
        content[:] = bytes(len(content))


def _ours(text: str) -> int:
    """A descriptor, and none of the caller's, who may have written the option. Raises ValueError, OSError."""
    fd = int(text)
    if not str(Path(f"/proc/self/fd/{fd}").readlink()).startswith(f"/memfd:{_NAME} "):
        raise ValueError(text)
    return fd


def _memory(content: bytes) -> int:
    """A descriptor that the next program inherits, at its beginning."""
    fd = os.memfd_create(_NAME, 0)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
