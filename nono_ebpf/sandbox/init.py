"""The sandbox's pid 1: builds the namespaces from inside, gives its privileges up, starts the command, reaps.

It is the kernel's handle on the sandbox: it dies with the supervisor (PR_SET_PDEATHSIG), and with pid 1 the kernel
kills every process of the pid namespace. pid_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from nono_ebpf.errors import KernelError, NonoError, SandboxError
from nono_ebpf.kernel import libc
from nono_ebpf.kernel.cgroup import Cgroup
from nono_ebpf.kernel.netns import Listeners, bring_up_loopback, open_listeners
from nono_ebpf.sandbox import privileges, seccomp, signals, view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nono_ebpf.sandbox.covers import Covers
    from nono_ebpf.sandbox.landlock import Domain

NOT_FOUND, NOT_EXECUTABLE, OUR_FAULT = 127, 126, 125
_FDS_END = 2**31 - 1
_UNMAPPED, _MAPPED, _READY = b"unmapped", b"mapped", b"ready"
_ALL_IDS = 2**32 - 1  # user_namespaces(7): the last id is no id
_SIZE_BYTES, _PIECE_BYTES = 8, 32768  # a packet has to fit into the socket's buffer, whatever is sent in all
_DNS_PORT = 53  # Landlock sees where a client wants to go, before the hooks bring it to our resolver


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and how it finds the world."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    umask: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the command finds, what its domain leaves open, and the ports of loopback that mean the host's."""

    view: view.View
    domain: Domain
    open_ports: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Groups:
    """The sandbox's two cgroups: the hooks of connect(2) are on one, those of the proxy's sockets on the other."""

    sandbox: Cgroup
    proxy: Cgroup


class Init:
    """The supervisor's side of pid 1, whose pid here is that of the supervisor's namespace."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel

    @classmethod
    def start(cls, command: Command, groups: Groups, surroundings: Surroundings) -> Init:
        """Fork it into a pid namespace of its own. It waits for `go()`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        libc.unshare(libc.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _main(theirs, command, groups, surroundings)
        libc.setns(own_namespace, libc.CLONE_NEWPID)  # our next children are not the sandbox's
        os.close(own_namespace)
        theirs.close()
        return cls(pid, ours)

    def listeners(self) -> Listeners:
        """The sockets it opened inside; the caller owns them."""
        message, fds, _, _ = socket.recv_fds(self._channel, 65536, 6)
        if len(fds) != 6:
            raise SandboxError(message.decode("utf-8", "replace") or "the sandbox's init ended without a word")
        return Listeners.of([socket.socket(fileno=fd) for fd in fds])

    def map_ids(self) -> None:
        """Give its user namespace every id as it is: it differs from ours in what its owner may do to our processes."""
        self._expect(_UNMAPPED)
        for file in ("uid_map", "gid_map"):
            Path(f"/proc/{self.pid}/{file}").write_text(f"0 0 {_ALL_IDS}")
        self._channel.send(_MAPPED)

    def wait_ready(self) -> None:
        """Until only `go()` is missing."""
        self._expect(_READY)

    def _expect(self, wanted: bytes) -> None:
        message = self._channel.recv(65536)
        if message != wanted:
            raise SandboxError(message.decode("utf-8", "replace") or "the sandbox's init ended without a word")

    def go(self, added_environment: Mapping[str, str], certificates: bytes = b"") -> None:
        """Let the command run, with these variables besides its own, and these certificates (PEM) in its bundle.

        Raises:
            SandboxError: init has ended, and says why.
        """
        data = msgspec.json.encode(_Go(dict(added_environment), certificates))
        try:
            self._channel.send(len(data).to_bytes(_SIZE_BYTES, "big"))
            for start in range(0, len(data), _PIECE_BYTES):
                self._channel.send(data[start : start + _PIECE_BYTES])
        except BrokenPipeError:
            self._expect(b"")
        self._channel.close()


class _Go(msgspec.Struct):
    """What the command waits for: it is known only when all else is ready."""

    environment: dict[str, str]
    certificates: bytes


@dataclass(frozen=True, slots=True)
class _Kept:
    """What outlasts the privileges: what hides secrets, and the fd by which certificates are added."""

    covers: Covers
    ca_bundle: int | None


def _main(channel: socket.socket, command: Command, groups: Groups, surroundings: Surroundings) -> NoReturn:
    status = OUR_FAULT
    try:
        channel = _only_fd(channel)
        kept = _build(channel, groups, surroundings)
        channel.send(_READY)
        if (go := _wait_for_go(channel)) is not None:
            channel.close()
            _add_certificates(kept.ca_bundle, go.certificates)
            status = _run(command, go.environment, kept.covers)
    except (NonoError, OSError) as error:
        channel.send(str(error).encode())
    except Exception as error:  # noqa: BLE001  # the supervisor, which raises it, would know nothing else
        channel.send(f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(status)


def _only_fd(channel: socket.socket) -> socket.socket:
    """Keep the standard streams and the channel: the supervisor's lifeline to the proxy must not live on here."""
    fd = os.dup2(channel.detach(), 3, inheritable=False)
    os.closerange(4, _FDS_END)  # not up to the limit: it may have been lowered since
    return socket.socket(fileno=fd)


def _wait_for_go(channel: socket.socket) -> _Go | None:
    """None: the supervisor could not finish the sandbox."""
    size = int.from_bytes(channel.recv(_SIZE_BYTES), "big")
    data = b""
    while len(data) < size:
        piece = channel.recv(_PIECE_BYTES)
        if not piece:
            return None
        data += piece
    return msgspec.json.decode(data, type=_Go) if data else None


def _add_certificates(bundle: int | None, certificates: bytes) -> None:
    if bundle is None:
        if certificates:
            raise SandboxError("there is no bundle that certificates could be added to")
        return
    with os.fdopen(bundle, "ab") as file:
        file.write(certificates)


def _build(channel: socket.socket, groups: Groups, surroundings: Surroundings) -> _Kept:
    os.umask(0o022)  # of what is put into the view; the command gets its own
    groups.proxy.join()  # the origin hook looks at the group of the listener's maker
    libc.unshare(libc.CLONE_NEWNET)
    bring_up_loopback()
    with open_listeners(surroundings.open_ports) as listeners:
        socket.send_fds(channel, [b"listeners"], [sock.fileno() for sock in listeners.all])
        domain = surroundings.domain.with_ports(listeners.proxy_port, _DNS_PORT)
    groups.sandbox.join()
    kept = _Kept(view.enter(surroundings.view), view.open_ca_bundle(surroundings.view))
    _leave_user_namespace(channel)
    user = surroundings.view.user
    privileges.become(user.uid, user.gid, user.groups)
    view.enter_working_directory()
    _leave_no_core_to_helpers()
    domain.enter()
    seccomp.confine_command()
    return kept


def _leave_no_core_to_helpers() -> None:
    """A crash would start the host's helper, as root and outside, on memory that the command has filled. A limit of one
    byte keeps a pipe from being started, zero does not: core(5). Where cores are files, the caller's limit stays.
    """
    if Path("/proc/sys/kernel/core_pattern").read_bytes().startswith(b"|"):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _leave_user_namespace(channel: socket.socket) -> None:
    """Same ids, another owner: no process outside, be it of the same account, can be traced, or robbed of its sockets
    through a pidfd, and no namespace outside can be entered. Keys of the caller stay outside as well.
    """
    try:
        libc.unshare(libc.CLONE_NEWUSER)
    except KernelError as error:
        if error.errno != errno.ENOSPC:  # user_namespaces(7)
            raise
        raise SandboxError("no user namespace can be made; raise the sysctl user.max_user_namespaces") from error
    channel.send(_UNMAPPED)
    if channel.recv(16) != _MAPPED:
        raise SandboxError("the supervisor ended while the sandbox started")
    # A mask comes off in a mount namespace of the command's own: there nothing keeps the file below from being renamed.
    Path("/proc/sys/user/max_mnt_namespaces").write_text("0")
    libc.leave_session_keyring()


def _run(command: Command, added_environment: Mapping[str, str], covers: Covers) -> int:
    covers.check()
    pid = os.fork()
    if pid == 0:
        _execute(command, {**command.environment, **added_environment})
    covers.guard(_end)
    return signals.wait_for(pid, lambda _pid, _status: None)


def _end(reason: SandboxError) -> NoReturn:
    """Ours is the end of every process of the sandbox."""
    _say(str(reason))
    os._exit(OUR_FAULT)


def _execute(command: Command, environment: Mapping[str, str]) -> NoReturn:
    status = OUR_FAULT
    try:
        signals.restore_defaults()
        _leave_process_group()
        os.umask(command.umask)
        os.execvpe(command.argv[0], command.argv, environment)  # noqa: S606  # the command itself
    except OSError as error:
        # A directory of PATH that is closed to the account makes "not found" look like "permission denied".
        found = "/" in command.argv[0] or shutil.which(command.argv[0], os.F_OK, environment.get("PATH"))
        status = NOT_EXECUTABLE if found and not isinstance(error, FileNotFoundError) else NOT_FOUND
        _say(f"{command.argv[0]}: {error.strerror if status == NOT_EXECUTABLE else 'command not found'}")
    finally:
        os._exit(status)


def _leave_process_group() -> None:
    """kill(0, …) reaches the whole group, outside the pid namespace too. On a terminal the group is what Ctrl-C and
    Ctrl-Z mean, and has to be shared.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        os.setpgid(0, 0)


def _say(text: str) -> None:
    sys.stderr.write(f"nono-ebpf: {text}\n")
    sys.stderr.flush()


def cgroups_under(root: Path) -> Groups:
    """Make both groups of a sandbox."""
    return Groups(Cgroup.create(root / "sandbox"), Cgroup.create(root / "proxy"))
