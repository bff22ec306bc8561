"""The sandbox's mount namespace: the host's files as they are, without the host's daemons.

A pathname socket is reached through the file system, whatever the network namespace: docker's would start a process
outside, systemd-resolved's would ask the network. So /run is a fresh tmpfs with nothing of the host but a few known
entries (a mask over a single socket falls off when its daemon restarts and makes the file anew), and whatever else
listens on a path is masked one by one. Terminals, queues and devices are reached through the file system, too: the
sandbox has a /dev of its own. mount_namespaces(7), unix(7), pts(4), mq_overview(7).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.errors import KernelError, SandboxError
from nono_ebpf.kernel import libc, mounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nono_ebpf.sandbox.user import User

RUN = Path("/run")
OWN_DIRECTORY = RUN / "nono-ebpf"
# Directories of /run that hold no daemon's socket, and without which a NixOS or a desktop is not itself.
KEPT_IN_RUN = ("wrappers", "media", "mount", "opengl-driver", "nixos", "shm")
# Where programs put sockets under names we cannot know before they do.
SOCKET_DIRECTORIES = ("/tmp/tmux-{uid}", "/tmp/screen-{uid}")  # noqa: S108  # theirs
SHARED_SOCKET_DIRECTORIES = ("/tmp/.X11-unix", "/tmp/.ICE-unix")  # noqa: S108  # theirs
CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Gentoo, NixOS
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine
)
# Where else they lie, and how far we look.
SOCKET_PLACES = ("/tmp", "/var/tmp")  # noqa: S108  # theirs
SEARCHED_LEVELS, SEARCHED_MAX = 3, 50_000
_READABLE = 0o644
_CGROUP_FLAGS = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# The group of terminals is 5 everywhere (Debian, Fedora, Arch).
_DEVICE_FILE_SYSTEMS = (
    ("devpts", "pts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "shm", "mode=1777"),
    ("mqueue", "mqueue", None),
)

FileId = tuple[int, int]  # st_dev, st_ino


@dataclass(frozen=True, slots=True)
class View:
    """What the sandbox finds in its file system that the host has not, or has otherwise."""

    user: User
    sockets: tuple[Path, ...]  # unix sockets of the host, to be masked
    allowed: Mapping[Path, FileId]  # those that stay, and what was there when they were allowed
    hosts: bytes
    resolv_conf: bytes
    ca_bundle: bytes | None
    hidden: tuple[Path, ...] = ()  # files that read as empty and take no writing
    devices: tuple[Path, ...] = ()  # of the host, below /dev, that stay


def host_sockets(user: User) -> tuple[Path, ...]:
    """Unix sockets that the account could find: those bound in this network namespace, by the name they were bound to
    (proc(5), /proc/net/unix), and those that lie where programs keep them. Neither list is enough: a socket may have
    been linked to another name, or bound by a relative one, or in another namespace.
    """
    lines = Path("/proc/net/unix").read_text(errors="surrogateescape").split("\n")[1:]
    bound = {Path("/" + line.partition(" /")[2]) for line in lines if " /" in line}
    places = {user.home, *SOCKET_PLACES, os.environ.get("TMPDIR", "/tmp")}  # noqa: S108  # the sockets' choice
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
            elif not entry.is_file(follow_symlinks=False) and Path(entry.path).is_socket():
                yield Path(entry.path)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:  # gone, or a file system that root may not read
        return []


def hosts_for_sandbox(hosts: str) -> bytes:
    """/etc/hosts with nothing but loopback names: every other name is to be asked for, so that it can be judged."""
    kept = [line for line in hosts.splitlines() if line.split("#")[0].split()[:1] and _is_loopback(line)]
    names = {name for line in kept for name in line.split()[1:]}
    if "localhost" not in names:
        kept = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", *kept]
    return ("\n".join(kept) + "\n").encode()


def _is_loopback(line: str) -> bool:
    address = line.split()[0]
    return address.startswith("127.") or address == "::1"


def resolv_conf_for_sandbox(resolv_conf: str) -> bytes:
    """The host's search list and options; the server's address is anything, the kernel brings queries to ours."""
    kept = [line for line in resolv_conf.splitlines() if line.startswith(("search", "domain", "options"))]
    return ("\n".join(["nameserver 127.0.0.1", *kept]) + "\n").encode()


def enter_working_directory() -> None:
    """The working directory is still the one below the view's mounts: find it by its name again, or take the root.

    To be called with the command's own rights: who owns a directory above it may change what the name means.
    """
    try:
        os.chdir(Path.cwd())
    except OSError:
        os.chdir("/")


def enter(view: View) -> None:
    """Leave the host's mount, IPC and cgroup namespaces and put the view in place. Needs root; call as pid 1."""
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWCGROUP)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    aliases = _aliases(view)
    kept = _handles([*(RUN / name for name in KEPT_IN_RUN), *view.allowed])
    terminal, devices = _own_terminal(), _handles(view.devices)
    _check_unchanged(view, kept)
    links = _links_of(RUN)
    resolv_conf = Path(os.path.realpath("/etc/resolv.conf"))
    _fresh(RUN, "mode=0755")
    _fill_run(view, links)
    OWN_DIRECTORY.mkdir()
    for directory, fd in _socket_directories(view.user).items():
        stay = {path.relative_to(directory): kept[path] for path in kept if path.is_relative_to(directory)}
        _replace_socket_directory(fd, view.user, stay)
        os.close(fd)
    _hold_in_place(view.user, [*view.sockets, *view.hidden, *aliases])
    _mask(view, aliases)
    for path, handle in kept.items():
        if path.is_relative_to(RUN):  # elsewhere nothing was taken away, and nothing is made
            _bind_handle(handle, path)
        os.close(handle)
    _replace_files(view, resolv_conf)
    _replace_devices(terminal, devices)
    _replace_cgroups()
    libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)


def _handles(paths: Iterable[Path]) -> dict[Path, int]:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    return {path: os.open(path, flags) for path in paths if path.exists() and not path.is_symlink()}


def _check_unchanged(view: View, handles: Mapping[Path, int]) -> None:
    for path, allowed in view.allowed.items():
        found = os.fstat(handles[path]) if path in handles else None
        if found is None or (found.st_dev, found.st_ino) != allowed:
            raise SandboxError(f"{path} is not the socket it was when it was allowed")


def _links_of(directory: Path) -> dict[str, str]:
    return {entry.name: str(entry.readlink()) for entry in directory.iterdir() if entry.is_symlink()}


def _fresh(path: Path, options: str) -> None:
    libc.mount("tmpfs", str(path), "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, options)


def _fill_run(view: View, links: dict[str, str]) -> None:
    for name, target in links.items():
        (RUN / name).symlink_to(target)
    (RUN / "lock").mkdir(mode=0o1777)
    (RUN / "lock").chmod(0o1777)
    runtime = RUN / "user" / str(view.user.uid)
    runtime.mkdir(parents=True)
    runtime.chmod(0o700)
    os.chown(runtime, view.user.uid, view.user.gid)


def _socket_directories(user: User) -> dict[Path, int]:
    """Handles of them. Where they are missing they are made: who listens there first may do so while the sandbox runs.

    Their names are the account's to change, so nothing is looked up by them again.
    """
    own = [Path(template.format(uid=user.uid)) for template in SOCKET_DIRECTORIES]
    shared = [Path(directory) for directory in SHARED_SOCKET_DIRECTORIES]
    with user.rights():
        _make(own, 0o700)
    _make(shared, 0o1777)
    handles = {}
    for directory in (*own, *shared):
        with suppress(OSError):  # something else than a directory, which its daemon would not take
            handles[directory] = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return handles


def _replace_socket_directory(fd: int, user: User, kept: Mapping[Path, int]) -> None:
    """Filled where nobody else's hands are, then put over the directory."""
    made = OWN_DIRECTORY / "sockets"
    made.mkdir()
    _fresh(made, f"mode=0700,uid={user.uid},gid={user.gid}")
    for path, handle in kept.items():
        _bind_handle(handle, made / path)
    libc.mount(str(made), f"/proc/self/fd/{fd}", None, libc.MS_BIND | libc.MS_REC)
    libc.unmount(str(made))
    made.rmdir()


def _make(directories: Iterable[Path], mode: int) -> None:
    umask = os.umask(0)
    for directory in directories:
        with suppress(OSError):  # it is there, or is something else, which its daemon would not take
            directory.mkdir(mode=mode)
    os.umask(umask)


def _replace_cgroups() -> None:
    """The host's hierarchies have groups of the account's (systemd's for its sessions, containers'), in which it could
    stop and kill. In their place: its own group for version 2, and for version 1 nothing that can be written.
    """
    hierarchies = [mount for mount in mounts.read() if mount.kind in {"cgroup", "cgroup2"}]
    own = OWN_DIRECTORY / "cgroup"  # by way of here: one file system is not mounted twice on one place
    own.mkdir()
    libc.mount("cgroup2", str(own), "cgroup2", _CGROUP_FLAGS)
    places = {mount.place: own if mount.kind == "cgroup2" else mount.place for mount in hierarchies}
    for place, source in (places | {own: own}).items():
        libc.mount(str(source), str(place), None, libc.MS_BIND)
        libc.mount(None, str(place), None, libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _CGROUP_FLAGS)


def _own_terminal() -> int | None:
    """A handle of the terminal that the command's streams are on, opened in this mount namespace; None without one."""
    for fd in filter(os.isatty, range(3)):
        try:
            return os.open(os.ttyname(fd), os.O_PATH | os.O_CLOEXEC)
        except OSError:  # of another mount namespace, where it has a name that we do not know
            continue
    return None


def _replace_devices(terminal: int | None, allowed: Mapping[Path, int]) -> None:
    """A /dev with what every program needs and nothing of the host: no other terminal, no virtual keyboard or socket
    device, no file systems of a process's own (who waits for its own answer there can be killed by nobody), queues and
    shared memory of its own. The command's terminal is found as the console, as in containers.
    """
    made = OWN_DIRECTORY / "dev"
    made.mkdir()
    _fresh(made, "mode=0755")
    for name in _DEVICES:
        _bind_handle_of(Path("/dev") / name, made / name)
    for name, target in _DEVICE_LINKS.items():
        (made / name).symlink_to(target)
    for kind, name, options in _DEVICE_FILE_SYSTEMS:
        (made / name).mkdir()
        with suppress(KernelError):  # a kernel without queues
            libc.mount(kind, str(made / name), kind, libc.MS_NOSUID | libc.MS_NOEXEC, options)
    for path, handle in allowed.items():
        _bind_handle(handle, made / path.relative_to("/dev"))
    if terminal is not None:
        _bind_handle(terminal, made / "console")
    libc.mount(str(made), "/dev", None, libc.MS_BIND | libc.MS_REC)
    libc.unmount(str(made))
    made.rmdir()


def _bind_handle_of(source: Path, target: Path) -> None:
    handle = os.open(source, os.O_PATH | os.O_CLOEXEC)
    _bind_handle(handle, target)
    os.close(handle)


def _aliases(view: View) -> list[Path]:
    """Where else the masked sockets and /run can be seen: in other mounts of their file systems."""
    hidden = [path for path in view.sockets if path not in view.allowed and not path.is_relative_to(RUN)]
    table = mounts.read()
    found = {alias for path in (RUN, *hidden) for alias in mounts.aliases(table, path)}
    return sorted(path for path in found if not path.is_relative_to(RUN))


def _hold_in_place(user: User, paths: Iterable[Path]) -> None:
    """A mask goes where a directory above it goes, and what it hid is in sight for the next sandbox. A mount point
    cannot be renamed, so each directory that the account could rename is mounted on itself. rename(2), EBUSY.
    """
    real = {Path(os.path.realpath(path)) for path in paths if path.exists()}
    above = {
        parent for path in real for parent in path.parents if parent != parent.parent and not path.is_relative_to(RUN)
    }
    with user.rights():
        open_to_it = {
            parent for parent in {each.parent for each in above} if os.access(parent, os.W_OK, effective_ids=True)
        }
    for directory in sorted(above):
        if directory.parent in open_to_it and not _is_kept_by_sticky_bit(user, directory):
            libc.mount(str(directory), str(directory), None, libc.MS_BIND | libc.MS_REC)


def _is_kept_by_sticky_bit(user: User, directory: Path) -> bool:
    """Only its owner may rename what is in a directory such as /tmp."""
    parent = directory.parent.stat()
    return bool(parent.st_mode & stat.S_ISVTX) and user.uid not in {parent.st_uid, directory.stat().st_uid}


def _mask(view: View, aliases: Sequence[Path]) -> None:
    masked = [path for path in view.sockets if path not in view.allowed and path.is_socket()]
    for path in (*masked, *view.hidden, *aliases):
        try:
            if path.is_dir():
                _fresh(path, "mode=0755")
            elif path.exists():
                libc.mount("/dev/null", str(path), None, libc.MS_BIND)
        except KernelError as error:
            if error.errno != errno.ENOENT:  # gone since
                raise


def _bind_handle(handle: int, path: Path) -> None:
    """Put what `handle` refers to back at `path`, in a tmpfs of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        path.mkdir()
    else:
        path.touch()
    libc.mount(f"/proc/self/fd/{handle}", str(path), None, libc.MS_BIND | libc.MS_REC)


def _replace_files(view: View, resolv_conf: Path) -> None:
    _replace("hosts", view.hosts, [Path("/etc/hosts")])
    _replace("resolv.conf", view.resolv_conf, [resolv_conf])
    if view.ca_bundle is not None:
        targets = {Path(os.path.realpath(bundle)) for bundle in CA_BUNDLES if Path(bundle).exists()}
        _replace("ca-bundle.pem", view.ca_bundle, sorted(targets))


def _replace(name: str, content: bytes, targets: Sequence[Path]) -> None:
    source = OWN_DIRECTORY / name
    source.write_bytes(content)
    source.chmod(_READABLE)
    for target in targets:
        if target.is_relative_to(RUN):  # the fresh tmpfs has it not
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        if target.exists():
            libc.mount(str(source), str(target), None, libc.MS_BIND)
