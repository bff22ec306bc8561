"""The kernel itself: hooks and maps that could be taken away, interfaces that reach further than a process, rights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attacks import kinds, processes, requests, streams
from kit import sandboxes, zone
from kit.account import INSIDE, finish
from kit.expect import missing

from nono_ebpf.kernel import cgroup
from nono_ebpf.kernel.hooks import HOOKS
from nono_ebpf.sandbox import state

if TYPE_CHECKING:
    from kit.inside import Agent
    from kit.sandboxes import Sandbox
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

DENIED, PORT = zone.v4("db.example.com"), zone.ECHO_PORT
HOSTILE_SUCCESS = "done"


def _group(sandbox: Sandbox) -> Path:
    return cgroup.hierarchy() / state.GROUP / sandbox.name


def _assert_still_judged(inside: Agent, witness: Witness) -> None:
    (answer,) = inside.call(
        requests.to_server, zone.v4("one.example.com"), 80, [["GET / HTTP/1.0\r\nHost: one.example.com\r\n\r\n"]]
    )
    assert answer.startswith("HTTP/1.1 200")
    assert inside.call(streams.plain, DENIED, PORT) in {"ECONNRESET", "ECONNREFUSED", "EPERM", "EPIPE", "ENOTCONN", ""}
    assert witness.arrived("echo") == []


@pytest.mark.bypass("bpf-detach")
def test_no_program_can_be_detached_or_replaced(
    inside: Agent, outside: Agent, witness: Witness, sandbox: Sandbox
) -> None:
    """Through read-only descriptors of the cgroups, by the sandbox and by another process of the account."""
    top = _group(sandbox)
    groups = [str(each) for each in (top, top / "sandbox", top / "proxy", top.parent, top.parent.parent)]
    for agent in (inside, outside):
        met = agent.call(processes.bpf_with_programs, [0, 1, 2], groups)
        assert HOSTILE_SUCCESS not in met.values(), met
    _assert_still_judged(inside, witness)


@pytest.mark.bypass("bpf-program-descriptors", "inherited-descriptors")
def test_nothing_of_bpf_is_inherited(inside: Agent, sandbox: Sandbox) -> None:
    """Neither the command nor the proxy holds a program or a link: whoever does can attach and detach."""
    held = inside.call(processes.own_descriptors)
    assert not [target for target in held.values() if "bpf" in target or "socket" in target], held
    for pid in (sandbox.proxy.pid, sandbox.supervisor.pid, *(each.pid for each in sandbox.inside)):
        assert not [target for target in sandboxes.open_files(pid) if "bpf-prog" in target or "bpf_link" in target]


@pytest.mark.bypass("last-descriptor")
def test_the_hooks_hang_on_no_descriptor(inside: Agent, sandbox: Sandbox) -> None:
    """Each of them is pinned, in a directory of root's."""
    assert len(list(sandbox.pins.iterdir())) >= len(HOOKS)
    for directory in (sandbox.pins, sandbox.pins.parent):
        status = directory.stat()
        assert (status.st_uid, status.st_mode & 0o077) == (0, 0)
    assert set(inside.call(processes.pins).values()) <= {"EACCES", "EPERM", "ENOENT", "ENOSYS"}


@pytest.mark.bypass("bpf-maps", "bpf-system-call", "kernel-interfaces", "io-uring")
def test_no_interface_reaches_past_the_process(inside: Agent, outside: Agent) -> None:
    """bpf, perf_event_open, userfaultfd, kexec, modules, rings, keys: each is refused."""
    if outside.call(processes.kernel_interfaces)["io_uring_setup"] != "done":
        missing("io_uring", "the kernel gives an ordinary account no ring")
    met = inside.call(processes.kernel_interfaces)
    assert set(met.values()) <= {"EPERM", "EACCES", "ENOSYS"}, met


@pytest.mark.bypass("uid-0", "set-uid-programs")
def test_the_command_is_an_account_without_rights(inside: Agent, outside: Agent) -> None:
    """Not root, no capability in any set, none to be had by a set-uid program; what uid 0 owns stays as it is."""
    met = inside.call(processes.identity)
    assert met["Uid"].split() == ["65534"] * 4
    assert {met[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (met["NoNewPrivs"], met["Seccomp"], met["root"], met["setgid"]) == ("1", "2", "EPERM", "EPERM")
    assert "0" in outside.call(processes.set_uid_programs).values()
    assert set(inside.call(processes.set_uid_programs).values()) <= {"65534", "gone"}
    files = inside.call(processes.privileged_files)
    own = {"/proc/1/attr/current", "/proc/sys/kernel/ns_last_pid", "/proc/self/uid_map"}  # open, and take no such word
    assert {name for name, outcome in files.items() if outcome == "done"} <= own, files


@pytest.mark.bypass("uid-0")
def test_a_sandbox_never_runs_as_root() -> None:
    """Neither by name nor by number, nor without saying whom."""
    for option in (["--user", "root"], ["--user", "0"], []):
        done = finish([sys.executable, "-I", "-m", "nono_ebpf", "run", *option, "--", "echo", "started"])
        assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.bypass("terminal-injection")
def test_no_terminal_takes_what_is_typed_by_a_program(inside: Agent) -> None:
    """TIOCSTI and TIOCLINUX are refused with any upper half; consoles do not open."""
    met = inside.call(processes.inject)
    assert {met[name] for name in met if name.startswith("TIOC")} == {"EPERM"}
    assert {name for name, outcome in met.items() if outcome == "done"} == set()


@pytest.mark.bypass("terminal-injection")
def test_another_terminal_of_the_account_is_out_of_sight(inside: Agent, outside: Agent) -> None:
    """Writing to it would be typing, for many a terminal emulator."""
    main, other = os.openpty()
    try:
        os.fchown(other, 65534, 65534)
        name = os.ttyname(other)
        assert outside.call(processes.inject)[name] == "done"
        met = inside.call(processes.inject)
        assert met.get(name, "ENOENT") != "done"
    finally:
        os.close(main)
        os.close(other)


@pytest.mark.bypass("message-queues")
def test_queues_and_segments_are_the_sandboxs_own(inside: Agent, outside: Agent) -> None:
    """A queue, by which a process outside could be told what to do, has no name inside."""
    name = f"nono-{os.getpid()}"
    made = outside.call(processes.make_shared, name)
    if made["queue"] != "done":
        missing("mqueue", f"the kernel has no POSIX message queues ({made['queue']})")
    try:
        assert outside.call(processes.shared_memory, name)["queue"] == "done"
        met = inside.call(processes.shared_memory, name)
        assert (met["queue"], met["listed"], met["system v"]) == ("ENOENT", "", "0")
    finally:
        subprocess.run(["ipcrm", "-M", "0x6e6f6e6f"], check=False, capture_output=True)
        kinds.LIBC.mq_unlink(b"/" + name.encode())


@pytest.mark.bypass("exhaustion")
def test_using_everything_up_opens_nothing(inside: Agent, witness: Witness) -> None:
    """Without a descriptor left, and after a thousand connects at once, the verdicts are the same."""
    inside.call(processes.exhaust_descriptors)
    inside.call(processes.storm, DENIED, PORT, 1000)
    assert witness.arrived("echo") == []
    _assert_still_judged(inside, witness)


# --- a machine that cannot enforce

_WITHOUT = """
import errno, os, seccomp, sys
refused = seccomp.SyscallFilter(seccomp.ALLOW)
refused.set_attr(seccomp.Attr.CTL_NNP, False)
for call in sys.argv[1].split(","):
    refused.add_rule(seccomp.ERRNO(errno.EPERM), call)
refused.load()
os.execv(sys.argv[2], sys.argv[2:])
"""
CALLS = ["bpf", "unshare", "mount", "setresuid", "capset", "seccomp,prctl", "setgroups", "mkdir", "setns"]


@pytest.mark.bypass("missing-enforcement")
@pytest.mark.parametrize("call", CALLS)
def test_without_enforcement_the_command_does_not_start(call: str) -> None:
    """Whatever part of the sandbox cannot be made: one says so, and nothing runs unprotected."""
    started = Path("/tmp") / f"nono-started-{os.getpid()}"
    done = finish([sys.executable, "-c", _WITHOUT, call, *INSIDE, "touch", str(started)])
    existed = started.exists()
    started.unlink(missing_ok=True)
    assert done.returncode not in {0, 126, 127}, done.stderr
    assert not existed
    assert done.stderr
