"""Compiles, loads, attaches and pins the programs of bpf/, in a child that takes LLVM's 120 MB away with it.

All or nothing: the links are pinned in a directory of a temporary name, which is renamed when everything holds. A
pinned link outlives every process, so a crash leaves the redirect standing and a dead port behind it: refused.
What comes back are map fds; no process that lives on holds a program or a link.

bcc wants the kernel's headers. Our programs use the UAPI alone, so it is pointed at the stubs in bpf/shim and, through
-isystem, at the distribution's linux-libc-dev.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import re
import signal
import socket
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nono_ebpf.errors import KernelError, LoadError, NonoError, NotSupported, SandboxError
from nono_ebpf.kernel import libc
from nono_ebpf.kernel.hooks import HOOKS, Hook, Side

if TYPE_CHECKING:
    from types import TracebackType

SOURCES = Path(__file__).resolve().parents[1] / "bpf"
MINIMUM = (5, 19)  # bpf_skc_to_mptcp_sock; map access without a capability
UNITS = ("nono_abi.h", "common.h", "connect.c", "datagram.c", "lifecycle.c", "guard.c")
_PROBLEM_MAX, _LOG_MAX = 300, 100_000
MAPS = ("settings", "denials", "unreported", "askers", "open_ports")


@dataclass(frozen=True, slots=True)
class Maps:
    """Map fds, owned by the holder."""

    settings: int
    denials: int
    unreported: int
    askers: int
    open_ports: int

    def close(self) -> None:
        """Close them all."""
        for fd in (self.settings, self.denials, self.unreported, self.askers, self.open_ports):
            os.close(fd)


def bcc_is_installed() -> bool:
    """The distribution's bcc, not PyPI's package of that name. Looks for its files: importing it brings LLVM along."""
    found = importlib.util.find_spec("bcc")
    places = (found.submodule_search_locations or []) if found else []
    return any((Path(place) / "libbcc.py").exists() for place in places)


class Loader:
    """A load under way in a child. `attach()` lets the child go on to the cgroups; leaving the context ends it."""

    def __init__(self) -> None:
        self._parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._parent.close()
            _run_child(child)
        child.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parent.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def attach(self, groups: dict[Side, Path], pins: Path) -> Maps:
        """Attach to the cgroups and pin the links under `pins`, a bpffs directory that does not exist yet.

        Raises:
            LoadError: with the compiler's or the verifier's words in `log`.
        """
        order = [str(pins), *(str(groups[side]) for side in Side)]
        with suppress(BrokenPipeError):  # it has failed already, and says why
            self._parent.send("\n".join(order).encode())
        answer, fds, _, _ = socket.recv_fds(self._parent, 1 << 20, len(MAPS))
        if len(fds) != len(MAPS):
            problem, _, log = answer.decode("utf-8", "replace").partition("\n")
            raise _failure(problem or "the loader ended without a word", log)
        return Maps(*fds)


def _failure(problem: str, log: str) -> SandboxError | NotSupported:
    """Having been tried and refused, what the release number says of the reason."""
    release = os.uname().release
    if tuple(int(part) for part in re.findall(r"\d+", release)[:2]) < MINIMUM:
        oldest = ".".join(map(str, MINIMUM))
        return NotSupported(f"load the hooks on Linux {release}", errno.ENOSYS, hint=f"{oldest} or newer is needed")
    return LoadError(problem, log)


def _run_child(channel: socket.socket) -> None:
    """The child's whole life; never returns."""
    log = os.memfd_create("bpf-log")
    try:
        for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(signum, signal.SIG_IGN)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        socket.send_fds(channel, [b"loaded"], _load_and_attach(channel))
        channel.recv(1)  # until the parent is done: closing the map fds here is the parent's to time
    except Exception as error:  # noqa: BLE001  # bcc raises bare Exception; all of it goes to the parent, which raises
        sys.stdout.flush()
        text = os.pread(log, 200_000, 0).decode("utf-8", "replace")
        problem = str(error) if isinstance(error, NonoError) else f"{type(error).__name__}: {error}"
        channel.send(f"{' '.join(problem.split())[:_PROBLEM_MAX]}\n{text[-_LOG_MAX:]}".encode())
    finally:
        os._exit(0)


def _load_and_attach(channel: socket.socket) -> list[int]:
    compiled = compile_programs()
    programs = {hook: load_program(compiled, hook) for hook in HOOKS}
    pins, *groups = channel.recv(8192).decode().split("\n")
    _attach_all(programs, dict(zip(Side, map(Path, groups), strict=True)), Path(pins))
    return [compiled[name.encode()].map_fd for name in MAPS]


def compile_programs() -> Any:  # noqa: ANN401  # bcc has no types
    """A bcc.BPF of one translation unit: bcc rewrites map calls in the main file only."""
    os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES / "shim")
    from bcc import BPF  # LLVM: only ever in a child

    text = b"\n".join((SOURCES / name).read_bytes() for name in UNITS)
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    return BPF(text=text, cflags=["-w", "-isystem", "/usr/include", "-isystem", f"/usr/include/{multiarch}"])


def load_program(compiled: Any, hook: Hook) -> int:  # noqa: ANN401  # as above
    """The program's fd, owned by bcc's object."""
    function = compiled.load_func(hook.function.encode(), int(hook.program_type), attach_type=int(hook.attach_type))
    return int(function.fd)


class _LinkAttributes(ctypes.Structure):
    """union bpf_attr, the part for BPF_LINK_CREATE."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("prog_fd", "target_fd", "attach_type", "flags"))


class _PinAttributes(ctypes.Structure):
    """union bpf_attr, the part for BPF_OBJ_PIN."""

    _fields_ = (("pathname", ctypes.c_uint64), ("bpf_fd", ctypes.c_uint32), ("file_flags", ctypes.c_uint32))


def attach(program_fd: int, group: Path, hook: Hook) -> int:
    """A bpf_link (fd, owned by the caller). Links are always in multi mode: nobody detaches them through the cgroup."""
    target = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes = _LinkAttributes(program_fd, target, int(hook.attach_type), 0)
        return libc.bpf(f"attach {hook.function}", libc.BPF_LINK_CREATE, attributes)
    finally:
        os.close(target)


def _pin(fd: int, path: Path) -> None:
    text = ctypes.create_string_buffer(os.fsencode(path))
    libc.bpf(f"pin {path}", libc.BPF_OBJ_PIN, _PinAttributes(ctypes.addressof(text), fd, 0))


def _attach_all(programs: dict[Hook, int], groups: dict[Side, Path], pins: Path) -> None:
    unfinished = pins.with_name(f"{pins.name}_new")  # bpffs refuses names with a dot
    unfinished.mkdir(mode=0o700)
    try:
        for hook, program in programs.items():
            link = attach(program, groups[hook.side], hook)
            _pin(link, unfinished / hook.function)
            os.close(link)
        unfinished.rename(pins)
    except (OSError, KernelError):
        remove_pins(unfinished)
        raise


def remove_pins(directory: Path) -> None:
    """Unpin: the links are gone with their last reference. A directory that is gone already is fine."""
    if directory.exists():
        for pin in directory.iterdir():
            pin.unlink()
        directory.rmdir()
