"""Root in a namespace of its own making has every right there, and there is nothing there."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attacks import nested, processes, streams
from kit import zone
from kit.account import AS_NOBODY, bystander
from kit.expect import missing
from kit.namespaces import inside as in_namespace
from kit.sandboxes import Sandbox, eventually

from nono_ebpf.kernel import cgroup
from nono_ebpf.sandbox import state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kit.inside import Agent
    from kit.witness import Witness
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

DENIED, PORT = zone.v4("db.example.com"), zone.ECHO_PORT
PERMITTED = zone.v4("echo.example.com")
NO_NAMESPACE = ("EPERM", "ENOSPC", "EACCES", "ENOSYS")


def _of(met: Any) -> dict[str, str] | None:
    """What was met, or None where no user namespace can be had at all, which is as good."""
    if isinstance(met, dict) and "user namespace" not in met:
        return met
    assert (met if isinstance(met, str) else met["user namespace"]) in NO_NAMESPACE, met
    return None


@pytest.mark.bypass("nested-network-namespace", "raw-sockets", "packet-sockets", "devices")
def test_a_network_of_its_own_leads_nowhere(inside: Agent) -> None:
    """Links and addresses can be made there, and no way back; one between it and the sandbox would be all there is."""
    met = _of(inside.call(nested.with_network, DENIED, PORT))
    if met is None:
        return
    assert met["connect"] in {"ENETUNREACH", "ENETDOWN", "EHOSTUNREACH"}
    assert met["back"] in {"EPERM", "EACCES", "ENOSYS"}
    # Older kernels do not ask whose the peer's namespace is: then a link leads from the sandbox into the command's own.
    assert met["veth into the sandbox"] in {"EPERM", "EOPNOTSUPP", "done"}
    assert met["packet"] in {"EAFNOSUPPORT", "EPERM"}
    assert met["raw"] == "EPERM"


@pytest.mark.bypass("nested-user-namespace", "routing-options", "netlink")
def test_root_of_a_user_namespace_has_no_right_over_the_sandboxs_network(inside: Agent) -> None:
    """No raw socket, no link, no route, no mark, no low port, no switch of the kernel's."""
    met = _of(inside.call(nested.without_network, DENIED, PORT))
    if met is not None:
        assert set(met.values()) <= {"EPERM", "EACCES", "EAFNOSUPPORT", "ENOENT", "EOPNOTSUPP"}, met


@pytest.mark.bypass("mounted-cgroupfs", "cgroup-migration")
def test_what_it_mounts_shows_nothing_of_the_host(inside: Agent) -> None:
    """cgroupfs begins at the sandbox's own group and takes no writing; bpffs, sysfs and debugfs cannot be had."""
    met = _of(inside.call(nested.mounted))
    if met is None:
        return
    assert met.get("cgroups", "") == ""
    assert "done" not in {met.get("make a cgroup"), met.get("join the top")}
    assert {kind for kind, outcome in met.items() if outcome == "done"} <= {
        "cgroup2",
        "binfmt_misc",
        "fuse",
        "proc",
        "mqueue",
    }, met


@pytest.mark.bypass("network-file-systems")
def test_the_kernel_opens_no_connection_for_a_mount(inside: Agent) -> None:
    """NFS, SMB, 9P, Ceph: a mount of these in a user namespace is refused."""
    met = _of(inside.call(nested.network_file_systems, DENIED))
    if met is not None:
        assert "done" not in met.values(), met


@pytest.mark.bypass("nested-user-namespace")
def test_a_proc_of_its_own_shows_its_own(inside: Agent) -> None:
    """No process of the host or of the rest of the sandbox."""
    met = _of(inside.call(nested.processes))
    if met is not None and met["mount"] == "done":
        assert met["visible"] == ["1"]


@pytest.mark.bypass("nested-user-namespace")
def test_user_namespaces_in_one_another_change_nothing(inside: Agent) -> None:
    """Four deep, the outermost is still the sandbox's."""
    assert set(inside.call(nested.chained, 3)) <= {"done", *NO_NAMESPACE}


@pytest.mark.bypass("setns")
def test_no_namespace_is_reached_from_ours(inside: Agent) -> None:
    """Neither pid 1's nor an owner or a parent of our own."""
    met = inside.call(processes.namespaces)
    assert "done" not in met.values(), met
    assert inside.call(processes.namespaces_of_the_network) == {"socket": "EPERM"}


@pytest.mark.bypass("ptrace", "signals", "proc-paths", "setns", "pidfd-getfd")
def test_a_process_outside_does_not_exist(inside: Agent, outside: Agent) -> None:
    """Its number is nobody's: no signal, memory, descriptor, directory or namespace of it."""
    with bystander(*AS_NOBODY, "sh", "-c", "echo ready; exec sleep 300") as process:
        control = outside.call(processes.on_pids, [process.pid])
        met = inside.call(processes.on_pids, [process.pid])
    assert list(control.values()).count("done") > 5, control
    assert set(met.values()) <= {"ESRCH", "ENOENT", "EPERM", "ENOSYS", "EINVAL"}, met
    assert set(inside.call(processes.visible_pids)) <= set(range(1, 5000))


@pytest.mark.bypass("ptrace", "proc-paths")
def test_pid_1_of_the_sandbox_is_closed_to_the_command(inside: Agent) -> None:
    """It was root once, and holds the way by which it was."""
    met = inside.call(processes.on_pids, [1])
    open_to_all = {"1 signal", "1 pidfd"}
    assert {name for name, outcome in met.items() if outcome == "done"} <= open_to_all, met


@pytest.mark.bypass("proxy-and-init")
def test_the_proxy_and_pid_1_are_closed_to_the_account(outside: Agent, sandbox: Sandbox) -> None:
    """Another process of the account, outside, cannot read, trace or enter them: they hold the way out."""
    for pid in (sandbox.proxy.pid, sandbox.supervisor.pid, sandbox.inside[0].pid):
        met = outside.call(processes.on_pids, [pid])
        allowed = {f"{pid} pidfd", f"{pid} signal", f"{pid} kcmp"}
        assert {name for name, outcome in met.items() if outcome == "done"} <= allowed, met


# --- cgroups


@pytest.fixture
def delegated(sandbox: Sandbox) -> Iterator[Path]:
    """A cgroup that is wholly the account's, as a systemd user manager has one."""
    group = cgroup.hierarchy() / f"nono-test-delegated-{sandbox.name}"
    group.mkdir()
    for path in (group, *group.iterdir()):
        os.chown(path, 65534, 65534)
    yield group
    for each in (group / "nono-child", group):
        assert eventually(lambda each=each: _is_removed(each))


def _is_removed(group: Path) -> bool:
    """Tries to. A process may be waited for before the kernel has it out of its group."""
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


@pytest.mark.bypass("cgroup-migration", "mounted-cgroupfs")
def test_no_cgroup_can_be_joined(inside: Agent, sandbox: Sandbox, delegated: Path) -> None:
    """By writing and by cloning, also one that belongs to the account."""
    own = cgroup.hierarchy() / state.GROUP / sandbox.name
    groups = [str(each) for each in (delegated, cgroup.hierarchy(), own, own / "proxy", own / "sandbox")]
    met = inside.call(processes.migrate, groups)
    joined = {
        name for name, outcome in met.items() if outcome == "done" and name.split()[1] in {"procs", "threads", "clone"}
    }
    assert joined == set(), met


@pytest.mark.bypass("signals", "cgroup-migration")
def test_a_group_of_the_accounts_is_not_killed(inside: Agent, outside: Agent, delegated: Path) -> None:
    """Its processes outside are as far from a cgroup's switches as from kill(2)."""
    with bystander(*AS_NOBODY, "sh", "-c", "echo ready; exec sleep 300") as process:
        (delegated / "cgroup.procs").write_text(str(process.pid))
        inside.call(processes.migrate, [str(delegated)])
        ended = eventually(lambda: process.poll() is not None, 0.5)
    assert not ended


def _migrant(sandbox: Sandbox) -> int | None:
    group = cgroup.hierarchy() / state.GROUP / sandbox.name / "sandbox"
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "nono-migrant":
                return int(pid)
    return None


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("child", marks=pytest.mark.bypass("child-cgroup")),
        pytest.param(
            "elsewhere",
            marks=pytest.mark.bypass("socket-outlives-migration", "cgroup-migration", "forged-destination-records"),
        ),
    ],
)
def test_a_process_in_another_cgroup_gets_no_further(
    inside: Agent, witness: Witness, sandbox: Sandbox, where: str
) -> None:
    """Moved by root: into a group below it is judged as before; out of it, its sockets are judged by the group they
    were made in, and new ones have no route, and no record for which the proxy would do anything.
    """
    top = cgroup.hierarchy()
    group = (
        top / state.GROUP / sandbox.name / "sandbox" / "nono-child"
        if where == "child"
        else top / f"nono-test-{sandbox.name}"
    )
    group.mkdir()
    try:
        met: dict[str, Any] = {}
        asking = threading.Thread(
            target=lambda: met.update(inside.call(streams.migrated, PERMITTED, zone.SUM_PORT, DENIED, PORT))
        )
        asking.start()
        assert eventually(lambda: _migrant(sandbox) is not None)
        (group / "cgroup.procs").write_text(str(_migrant(sandbox)))
        asking.join()
    finally:
        assert eventually(lambda: _is_removed(group))
    assert met["moved"]
    refused = {"ECONNREFUSED", "ECONNRESET", "EPERM", "EPIPE", "ENOTCONN", "ENETUNREACH", ""}
    assert (met["old, permitted"][:1], met["old, denied"] in refused) == ("6", True), met
    if where == "child":
        assert (met["new, permitted"][:1], met["new, denied"] in refused) == ("6", True), met
    else:
        assert (met["new, permitted"], met["new, denied"]) == ("ENETUNREACH", "ENETUNREACH"), met
        assert met["new, proxy"] in {"ECONNRESET", "ENOTCONN"}  # whichever call comes behind the reset


@pytest.mark.bypass("listening-inside")
def test_nobody_outside_fetches_from_a_listener_inside(
    inside: Agent, world: World, witness: Witness, place: Path
) -> None:
    """From the machine it runs on, by loopback and its addresses, and from the world: refused."""
    port, met = 4455, {}
    asking = threading.Thread(target=lambda: met.update(inside.call(streams.listening, port, str(place))))
    asking.start()
    listens = place / "listening"
    assert eventually(listens.exists)

    def visit(address: str) -> str:
        try:
            socket.create_connection((address, port), 90).close()
        except OSError as error:
            return type(error).__name__
        return "done"

    addresses = (zone.MACHINE_V4, zone.MACHINE_V6, "127.0.0.1", "::1", "198.18.0.1")
    visits = [in_namespace(world.namespaces.machine, lambda a=address: visit(a)) for address in addresses[:4]]
    visits += [in_namespace(world.namespaces.world, lambda a=address: visit(a)) for address in addresses[:2]]
    listens.unlink()
    asking.join()
    witness.forget()  # that nobody listens has been said to the world, by resets
    assert "done" not in visits
    assert met == {"visitors": 0}


@pytest.mark.bypass("proxy-killed")
def test_whoever_takes_a_dead_proxys_port_gets_nothing(start_inside: Callable[..., Agent]) -> None:
    """Once the proxy has been killed, its port can be bound, and no connection comes."""
    inside = start_inside("--allow-domain", "one.example.com")
    found = Sandbox.of(inside.process.pid)
    try:
        found.proxy.kill()
        assert eventually(lambda: "the proxy ended" in inside.said())
        met = inside.call(streams.usurp, DENIED, PORT)
    finally:
        found.close()
    assert met["connects"] == ["ECONNREFUSED"] * 3
    assert met["visitors"] == 0


@pytest.mark.bypass("net-classifiers")
def test_class_ids_of_cgroup_v1_do_not_switch_the_hooks_off(
    inside: Agent, witness: Witness, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Before Linux 5.15 a process with a net_cls or net_prio id had no cgroup v2 for its sockets."""
    controllers = [line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()]
    if "net_cls" not in controllers:
        missing("net_cls", "the kernel has no net_cls")
    if subprocess.run(["mount", "-t", "cgroup", "-o", "net_cls", "none", str(tmp_path)], check=False).returncode != 0:
        missing("net_cls", "net_cls cannot be mounted")
    group = tmp_path / f"nono-{sandbox.name}"
    agent = str(sandbox.inside[1].pid)  # behind pid 1; the last may be an attack that is just ending
    try:
        group.mkdir()
        (group / "net_cls.classid").write_text("0x10001")
        (group / "cgroup.procs").write_text(agent)
        assert inside.call(streams.plain, PERMITTED, zone.SUM_PORT).startswith("6 ")
        assert inside.call(streams.plain, DENIED, PORT) in {
            "ECONNRESET",
            "ECONNREFUSED",
            "EPERM",
            "EPIPE",
            "ENOTCONN",
            "",
        }
    finally:
        (tmp_path / "cgroup.procs").write_text(agent)
        assert eventually(lambda: _is_removed(group))
        subprocess.run(["umount", str(tmp_path)], check=True)
