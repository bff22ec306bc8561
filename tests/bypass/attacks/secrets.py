"""A secret in a file that is hidden: every way that a process may find to its bytes."""

# The system calls that an attacker would make:
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH110, PTH112, PTH113, PTH118, PTH119, PTH120, PTH123, PTH208
# ruff: noqa: PTH211

from __future__ import annotations

import ctypes
import os
import select
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.base import DONE, LIBC, PATIENCE_S, failure, in_a_place, in_child, name_of, raw_syscall, told
from attacks.unix import become_root, mount, umount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_FDCWD, RENAME_EXCHANGE = -100, 2
OPEN_TREE, OPEN_TREE_CLONE = 428, 1  # on every architecture
MS_BIND, MS_REMOUNT, MS_MOVE, MS_REC = 4096, 32, 8192, 16384
HANDLE_BYTES = 128
IN_ALL_EVENTS = 0xFFF
_FILES_MAX = 2000


def read(path: str) -> str:
    """What a file holds, or why it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4096).decode("latin-1")
    except OSError as error:
        return name_of(error.errno)


def everything(path: str) -> dict[str, str]:
    """All ways to the file at `path`, in its own words or the kernel's."""
    return {
        **_names(path),
        **_processes(path),
        **_mounts(path),
        **_moves(path),
        **_handles(path),
        **_tree(os.path.dirname(os.path.dirname(path))),
        "root": str(in_a_place(lambda place: _rooted(path, place))),
    }


def _names(path: str) -> dict[str, str]:
    directory, name = os.path.split(path)
    above, last = os.path.split(directory)
    names = {
        "itself": path,
        "/proc/self/root": f"/proc/self/root{path}",
        "/proc/thread-self": f"/proc/thread-self/root{path}",
        "dots": f"{directory}/../{last}/{name}",
        "slashes": path.replace("/", "//"),
        "real": os.path.realpath(path),
    }
    found = {f"name {how}": read(where) for how, where in names.items()}
    found["cwd"] = in_child(lambda: (os.chdir(directory), read(name))[1])
    found["cwd above"] = in_child(lambda: (os.chdir(above), read(f"{last}/{name}"))[1])
    for how, where in (("O_PATH above", above), ("O_PATH", directory)):
        with suppress(OSError):
            handle = os.open(where, os.O_PATH)
            found[how] = read(f"/proc/self/fd/{handle}/{os.path.relpath(path, where)}")
            os.close(handle)
    return found


def _processes(path: str) -> dict[str, str]:
    """By way of what other processes are in or hold open, pid 1 first."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for way in ("root", "cwd"):
            found[f"/proc/{pid}/{way}"] = read(f"/proc/{pid}/{way}{path}")
        for way in ("fd", "map_files"):
            with suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/{way}"):
                    opened = f"/proc/{pid}/{way}/{name}"
                    if os.path.isfile(opened):
                        found[opened] = read(opened)
                    elif os.path.isdir(opened):
                        found[opened] = read(f"{opened}{path}") + read(f"{opened}/{os.path.basename(path)}")
    return found


def _mounts(path: str) -> dict[str, str]:
    """Every mount may show the file under the end of its path; a line in the table says which."""
    parts = Path(path).parts
    found = {}
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        place = line.split(" ")[4]
        found[f"mount {place}"] = read(place) if os.path.isfile(place) else ""
        for start in range(1, len(parts)):
            where = os.path.join(place, *parts[start:])
            if os.path.exists(where):
                found[where] = read(where)
    return found


def _moves(path: str) -> dict[str, str]:
    """What covers it is taken along, or off. Each is undone where it succeeds."""
    directory, name = os.path.split(path)
    above, last = os.path.split(directory)
    aside = f"{above}.{os.getpid()}"
    moves = {
        "rename file": (path, f"{above}/moved", ""),
        "rename directory": (directory, f"{directory}.moved", name),
        "rename above": (above, aside, f"{last}/{name}"),
    }
    found = {how: _move(old, new, inner) + read(path) for how, (old, new, inner) in moves.items()}
    linked = f"{above}/linked"
    found["link file"] = told(os.link, path, linked) + read(linked)
    with suppress(OSError):
        os.unlink(linked)
    for how, which in (("exchange directory", directory), ("exchange above", above)):
        other = f"{os.path.dirname(which)}/exchanged.{os.getpid()}"
        with suppress(OSError):
            os.mkdir(other)
        found[how] = told(_exchange, which, other) + read(f"{other}/{os.path.relpath(path, which)}") + read(path)
        if found[how].startswith(DONE):
            _exchange(which, other)
        with suppress(OSError):
            os.rmdir(other)
    steps: dict[str, Callable[[], object]] = {
        "remove directory": lambda: os.rmdir(directory),
        "symlink over": lambda: os.symlink("/", directory),
        "chmod": lambda: os.chmod(directory, 0o700),
    }
    return found | {how: told(step) + read(path) for how, step in steps.items()}


def _move(old: str, new: str, inner: str) -> str:
    outcome = told(os.rename, old, new)
    if outcome != DONE:
        return outcome
    try:
        return read(os.path.join(new, inner) if inner else new)
    finally:
        os.rename(new, old)


def _exchange(path: str, other: str) -> None:
    """renameat2(2): both stay, under each other's name."""
    if LIBC.renameat2(AT_FDCWD, path.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def _handles(path: str) -> dict[str, str]:
    """open_by_handle_at(2) needs no path; a handle of the directory above may do for what is in it."""
    found = {}
    for where in (path, os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        handle = ctypes.create_string_buffer(HANDLE_BYTES + 8)
        handle[0:4] = HANDLE_BYTES.to_bytes(4, "little")  # type: ignore[assignment]  # as the call wants it
        mount_id = ctypes.c_int()
        if LIBC.name_to_handle_at(AT_FDCWD, where.encode(), handle, ctypes.byref(mount_id), 0) != 0:
            found[f"handle {where}"] = failure()
            continue
        for base in ("/", os.path.dirname(where)):
            at = os.open(base, os.O_RDONLY)
            opened = raw_syscall("open_by_handle_at", at, handle, os.O_RDONLY)
            found[f"handle {where} at {base}"] = failure() if opened < 0 else _through(opened, where, path)
            os.close(at)
    return found


def _through(opened: int, where: str, path: str) -> str:
    inner = os.path.relpath(path, where)
    return read(f"/proc/self/fd/{opened}" + ("" if inner == "." else f"/{inner}"))


def heard(directory: str, place: str) -> str:
    """Names of which inotify(7) tells, from when `place`/listening is there until `place`/enough is."""
    listener = LIBC.inotify_init1(os.O_NONBLOCK)
    for where in (directory, place):
        if LIBC.inotify_add_watch(listener, where.encode(), IN_ALL_EVENTS) < 0:
            return failure()
    Path(place, "listening").touch()
    events = b""
    while b"enough" not in events:
        select.select([listener], [], [], PATIENCE_S)
        events += os.read(listener, 1 << 16)
    return events.decode("latin-1")


def _tree(directory: str) -> dict[str, str]:
    """Whatever lies below. No pipes: who opens one waits for the other end."""
    found = {}
    for number, where in enumerate(_files(directory)):
        if number == _FILES_MAX:
            break
        found[f"below {where}"] = read(where)
    return found


def _files(directory: str) -> Iterator[str]:
    for place, _, names in os.walk(directory):
        yield from filter(os.path.isfile, (os.path.join(place, name) for name in names))


def _rooted(path: str, place: str) -> dict[str, str]:
    """As root of a user namespace."""
    begun = become_root()
    directory, name = os.path.split(path)
    above, last = os.path.split(directory)
    found = {"become root": begun}
    steps: dict[str, Callable[[], object]] = {
        "umount": lambda: umount(directory, 0),
        "umount, detach": lambda: umount(directory),
        "umount above": lambda: umount(above),
        "bind above": lambda: mount(above, place, None, MS_BIND),
        "bind directory": lambda: mount(directory, place, None, MS_BIND),
        "move": lambda: mount(directory, place, None, MS_MOVE),
        "remount": lambda: mount(None, directory, None, MS_REMOUNT | MS_BIND),
        "tmpfs over": lambda: mount("tmpfs", directory, "tmpfs", 0),
        "overlay": lambda: mount("overlay", place, "overlay", 0, f"lowerdir={above}:{directory}"),
        "proc": lambda: mount("proc", place, "proc", 0),
        "chroot": lambda: os.chroot(above),
    }
    for how, step in steps.items():
        outcome = in_child(
            lambda step=step: (
                f"{told(step)} {read(path)} {read(f'{place}/{last}/{name}')} {read(f'{place}/{name}')} "
                f"{read(f'/{last}/{name}')} {read(f'{place}/1/root{path}')}"
            )
        )
        found[how] = str(outcome)
    for how, flags in (("open_tree", 0), ("open_tree clone", OPEN_TREE_CLONE)):
        tree = LIBC.syscall(ctypes.c_long(OPEN_TREE), AT_FDCWD, above.encode(), ctypes.c_uint(flags))
        found[how] = failure() if tree < 0 else read(f"/proc/self/fd/{tree}/{last}/{name}")
    return found
