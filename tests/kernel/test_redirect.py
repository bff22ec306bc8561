"""Every way to open a connection ends at the proxy, which goes where the rules let it; nothing else gets out.

::

    sandbox (lo only)                   machine               world
    probes.py, ring.c  ─ connect(2) ─►  proxy  ─ judged ─►    203.0.113.14:4000  [2001:db8::14]:4000  allowed
      any socket, any option                                  203.0.113.13:4000                       allowed
                                                              everything else                         denied

Each test runs one probe and compares three witnesses: what the probe met, the audit log, the world's servers.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import pytest
from kit import zone
from kit.expect import require

if TYPE_CHECKING:
    from kit.machine import Record, Run
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

HERE = Path(__file__).parent
NAME, OTHER_NAME = "echo.example.com", "banner.example.com"
V4, V6, OTHER_V4 = zone.v4(NAME), zone.v6(NAME), zone.v4(OTHER_NAME)
PORT, DENIED_PORT = zone.SUM_PORT, zone.ECHO_PORT
ALLOW = [
    part
    for rule in (f"{V4}:{PORT}", f"[{V6}]:{PORT}", f"{OTHER_V4}:{PORT}", f"{NAME}:{PORT}")
    for part in ("--allow-domain", rule)
]
PAYLOAD = "ping"
V4_ONLY, V6_ONLY = ["mapped", "mptcp_mapped"], ["v6only"]
BOTH = [
    "plain", "bound_any", "bound_loopback", "nonblocking", "fastopen_sendto", "fastopen_connect", "mptcp",
    "mptcp_fastopen", "reconnected",
]  # fmt: skip
WAYS = [(kind, V4) for kind in BOTH + V4_ONLY] + [(kind, V6) for kind in BOTH + V6_ONLY]


def _probe(world: World, *arguments: str | int) -> Run:
    return world.machine.run(ALLOW, [sys.executable, str(HERE / "probes.py"), *map(str, arguments)])


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _summed(payload: str) -> str:
    return f"{len(payload)} {hashlib.sha256(payload.encode()).hexdigest()}"


def _flow(run: Run, address: str, port: int, decision: str) -> Record:
    """The one record of a flow to `address`."""
    wanted = _endpoint(address, port)
    flows = [each for each in run.flows(decision) if each.get("original_destination") == wanted]
    assert len(flows) == 1, run
    return flows[0]


def _reached(world: World, service: str) -> list[tuple[str, str]]:
    return [(seen.address, seen.what) for seen in world.seen if seen.service == service]


@pytest.mark.parametrize(("kind", "address"), WAYS)
def test_redirected(world: World, kind: str, address: str) -> None:
    """However a stream is opened, it arrives through the proxy, and the client sees the peer it asked for."""
    run = _probe(world, kind, address, PORT, PAYLOAD)
    met = run.json()
    assert met.get("reply") == _summed(PAYLOAD), run
    asked = f"::ffff:{address}" if "mapped" in kind else address
    assert met["peer"] == [asked, PORT]
    flow = _flow(run, address, PORT, "allow")
    assert (flow["comm"], flow["uid"], flow["bytes_sent"]) == (f"probe-{kind}"[:15], 65534, len(PAYLOAD)), flow
    assert _reached(world, "sum") == [(address, str(len(PAYLOAD)))]


@pytest.mark.parametrize(("kind", "address"), WAYS)
def test_denied(world: World, kind: str, address: str) -> None:
    """However a stream is opened, a destination no rule allows is refused, and nothing of it gets out."""
    run = _probe(world, kind, address, DENIED_PORT, PAYLOAD)
    met = run.json()
    assert met.get("reply", "") == "", "something answered"
    assert met.get("error") in {"ECONNREFUSED", "ECONNRESET", "EPERM", "EPIPE", "ENOTCONN"}, run
    flow = _flow(run, address, DENIED_PORT, "deny")
    assert flow["comm"] == f"probe-{kind}"[:15]
    assert flow["reason"]
    assert _reached(world, "echo") == []


def test_equal_source_ports(world: World) -> None:
    """Connections whose sources differ in the loopback address only are not taken for one another."""
    run = _probe(world, "equal_ports", V4, OTHER_V4, PORT, PAYLOAD)
    met = run.json()
    assert met["first"]["local"][1] == met["second"]["local"][1]
    assert (met["first"]["peer"], met["first"]["reply"]) == ([V4, PORT], _summed(PAYLOAD))
    assert (met["second"]["peer"], met["second"]["reply"]) == ([OTHER_V4, PORT], _summed(PAYLOAD * 2))
    assert sorted(_reached(world, "sum")) == [(OTHER_V4, "8"), (V4, "4")]
    assert _flow(run, V4, PORT, "allow")["bytes_sent"] == 4
    assert _flow(run, OTHER_V4, PORT, "allow")["bytes_sent"] == 8


def test_pid_is_the_real_one(world: World) -> None:
    """The audit log names the process as the host knows it, not as its own pid namespace does."""
    alive: list[int] = []
    world.servers.on_echo = lambda: alive.extend(_pids_of("probe-held"))
    allow = ["--allow-domain", f"{V4}:{DENIED_PORT}"]
    probe = [sys.executable, str(HERE / "probes.py"), "held", V4, str(DENIED_PORT), PAYLOAD]
    run = world.machine.run(allow, probe)
    assert run.json() == {"reply": PAYLOAD}
    assert [_flow(run, V4, DENIED_PORT, "allow")["pid"]] == alive


def _pids_of(comm: str) -> list[int]:
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _read(path) == comm]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # the process has ended meanwhile
        return None


@pytest.fixture(scope="session")
def ring(_world: World) -> Path:
    """The io_uring client, compiled."""
    program = _world.work / "ring"
    source = str(HERE / "csrc" / "ring.c")
    subprocess.run([require("gcc"), "-D_GNU_SOURCE", "-Wall", "-Werror", "-o", str(program), source], check=True)
    return program


@pytest.mark.parametrize("address", [V4, V6])
@pytest.mark.parametrize(("port", "decision"), [(PORT, "allow"), (DENIED_PORT, "deny")])
def test_io_uring(world: World, ring: Path, address: str, port: int, decision: str) -> None:
    """A ring either cannot be had, or its connects are redirected and judged like any other."""
    run = world.machine.run(ALLOW, [str(ring), address, str(port), PAYLOAD])
    met = run.json()
    reached = _reached(world, "sum") + _reached(world, "echo")
    if met.get("at") == "io_uring_setup":
        assert met["error"] in {"ENOSYS", "EPERM"}
        assert reached == []
        return
    assert _flow(run, address, port, decision)["comm"] == "probe-io_uring"
    if decision == "allow":
        assert met == {"peer": [address, port], "reply": _summed(PAYLOAD)}
    else:
        assert met.get("reply", "") == ""
        assert reached == []


def test_io_uring_probe_works(world: World, ring: Path) -> None:
    """The control: outside a sandbox the ring program connects, so what stops it inside is the sandbox."""
    done = world.machine.bare([str(ring), V4, str(PORT), PAYLOAD])
    assert json.loads(done.stdout) == {"peer": [V4, PORT], "reply": _summed(PAYLOAD)}


@pytest.mark.parametrize("server", ["9.9.9.9", "2620:fe::fe", "::ffff:9.9.9.9"])
def test_dns_answers_come_from_whom_was_asked(world: World, server: str) -> None:
    """Whatever resolver a program asks over UDP, ours answers, under the address that was asked."""
    query = dns.message.make_query(NAME, "AAAA" if server == "2620:fe::fe" else "A")
    run = _probe(world, "dns_datagrams", server, query.to_wire().hex())
    met = run.json()
    assert {tuple(met[way]) for way in ("recvfrom", "recvmsg", "getpeername")} == {(server, 53)}, run
    _assert_answers(met["answer"], query)
    _assert_asked(run, "probe-dns_datagrams")


@pytest.mark.parametrize("server", ["9.9.9.9", "2620:fe::fe", "::ffff:9.9.9.9"])
def test_dns_over_tcp(world: World, server: str) -> None:
    """DNS over TCP goes to our resolver too, and getpeername shows the server that was asked."""
    query = dns.message.make_query(NAME, "A")
    run = _probe(world, "dns_stream", server, query.to_wire().hex())
    assert run.json().get("getpeername") == [server, 53], run
    _assert_answers(run.json()["answer"], query)
    _assert_asked(run, "probe-dns_stream")


def _assert_asked(run: Run, comm: str) -> None:
    """Every lookup is in the audit log, with the process that asked."""
    asked = {(record["target"], record.get("comm")) for record in run.flows("allow", event="dns")}
    assert asked == {(NAME, comm[:15])}, run.records


def _assert_answers(wire: str, query: dns.message.Message) -> None:
    answer = dns.message.from_wire(bytes.fromhex(wire))
    assert query.is_response(answer)
    assert (answer.rcode(), len(answer.answer)) == (dns.rcode.NOERROR, 1), answer


def test_denied_name_never_leaves(world: World) -> None:
    """A name that no rule could permit gets NXDOMAIN at once and is asked of nobody."""
    query = dns.message.make_query("c2VjcmV0.two.example.com", "A")
    met = _probe(world, "dns_datagrams", "9.9.9.9", query.to_wire().hex()).json()
    assert dns.message.from_wire(bytes.fromhex(met["answer"])).rcode() == dns.rcode.NXDOMAIN
    assert _reached(world, "dns") == []


def test_datagrams_are_refused(world: World) -> None:
    """UDP other than DNS gets EPERM from sendto and connect alike, so QUIC clients fall back at once."""
    addresses = [V4, V6, f"::ffff:{V4}", zone.METADATA_V4]
    for port in (zone.SINK_UDP_PORT, 443):
        run = _probe(world, "datagrams", port, *addresses)
        assert run.json() == {address: ["EPERM", "EPERM"] for address in addresses}, run
    assert _reached(world, "udp") == []


KEPT = {
    "tcp": [2, 1, 6],
    "tcp6": [10, 1, 0],
    "udp": [2, 2, 17],
    "unix": [1, 1, 0],
    "netlink-route": [16, 3, 0],
}
INTERNET = {
    "raw": [2, 3, 255],
    "raw-icmp": [2, 3, 1],
    "raw-v6": [10, 3, 58],
    "ping": [2, 2, 1],
    "ping-v6": [10, 2, 58],
    "sctp": [2, 1, 132],
    "sctp-seqpacket": [10, 5, 132],
    "udplite": [2, 2, 136],
    "udplite-v6": [10, 2, 136],
    "dccp": [2, 6, 33],
}
OTHER_FAMILIES = {
    "packet": [17, 3, 0],
    "vsock": [40, 1, 0],
    "vsock-datagram": [40, 2, 0],
    "xdp": [44, 3, 0],
    "alg": [38, 5, 0],
    "tipc": [30, 5, 0],
    "smc": [43, 1, 0],
    "rds": [21, 5, 0],
    "kcm": [41, 2, 0],
    "netlink-generic": [16, 3, 16],
    "netlink-audit": [16, 3, 9],
}


@pytest.mark.parametrize("refused", [INTERNET, OTHER_FAMILIES], ids=["internet", "other-families"])
def test_other_sockets_are_refused(world: World, refused: dict[str, list[int]]) -> None:
    """Of all kinds of sockets a sandbox gets TCP, UDP, unix and the routing netlink: what can be judged."""
    met = _probe(world, "sockets", json.dumps(refused | KEPT)).json()
    assert {name for name, error in met.items() if error is None} == set(KEPT)


def test_own_loopback_is_untouched(world: World) -> None:
    """Servers and clients inside a sandbox meet on its loopback, over TCP and UDP, and see true addresses."""
    run = _probe(world, "loopback", "127.0.0.1", "127.0.0.5", "::1")
    met = run.json()
    for address in ("127.0.0.1", "127.0.0.5", "::1"):
        assert met[address]["tcp"] == {"received": "inside", "true_addresses": True}, met
        assert met[address]["udp"] == {"received": "inside back", "true_addresses": True}, met
    assert run.records == ()


NEVER = [zone.METADATA_V4, "64:ff9b::a9fe:a9fe", zone.MACHINE_V4, zone.MACHINE_V6]


@pytest.mark.parametrize("address", NEVER)
def test_always_denied(world: World, address: str) -> None:
    """The metadata service in any spelling and the machine itself are refused although "*" is allowed."""
    probe = [
        sys.executable,
        str(HERE / "probes.py"),
        "plain",
        address,
        str(zone.HTTP_PORT),
        PAYLOAD,
    ]
    run = world.machine.run(["--allow-domain", "*"], probe)
    assert run.json().get("error"), run
    assert _flow(run, address, zone.HTTP_PORT, "deny")["reason"]
    assert _reached(world, "http") == []


@pytest.mark.parametrize("proxy_env", [True, False], ids=["proxy-variables", "empty-environment"])
@pytest.mark.parametrize("name", ["rebind.example.com", "inward.example.com", "own.example.com"])
def test_names_that_point_inward(world: World, name: str, proxy_env: bool) -> None:
    """An allowed name whose address is the metadata service, loopback or the machine is refused."""
    fetch = [require("curl"), "-sS", "--fail", "--max-time", "90", f"http://{name}/"]
    run = world.machine.run(["--allow-domain", name], fetch, proxy_env=proxy_env)
    assert run.returncode != 0
    assert run.flows("deny", target=name), run
    assert _reached(world, "http") == []
