"""kill -9 of the proxy, of the supervisor, of both: nothing leaves that a rule does not allow, nothing stays behind.

::

    sandbox: restless.py ──► proxy ──► mach0 ─────────► world
      every way out,                     │
      over and over                   scapy: every frame that left

Three witnesses: the frames on the machine's only link, the world's servers, and the sandboxed command itself.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING

import pytest
from kit import sandboxes, zone
from kit.capture import Capture, Sent
from kit.machine import read_records
from kit.patience import patient
from kit.sandboxes import Sandbox, Victim, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kit.machine import Machine, Record
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.slow, pytest.mark.alone]

RESTLESS = (Path(__file__).parents[1] / "kit" / "restless.py").read_text()
ALLOWED, DENIED = "v4.one.example.com", "v4.db.example.com"
DENIED_V4, DENIED_V6 = zone.v4("db.example.com"), zone.v6("db.example.com")
PERMITTED = {
    ("tcp", zone.v4("one.example.com"), zone.HTTP_PORT),
    *((each, zone.DNS_V4, 53) for each in ("tcp", "udp")),
}
ONCE = ["python3", "-I", "-c", RESTLESS, ALLOWED, str(zone.HTTP_PORT)]
LOAD = [*ONCE, DENIED, DENIED_V4, DENIED_V6, str(zone.ECHO_PORT), str(zone.SINK_UDP_PORT), zone.DNS_V4]
RUN = [sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", "nobody", "--", "true"]

ROUNDS = range(5)
LONGEST_WAIT_S, LONGEST_GAP_S = 0.4, 0.03
LONGEST_START_S = 0.9
ATTEMPTS_AFTER = 25
AT_ONCE_NS = int(patient(1) * 1e9)  # the hook answers in microseconds; the machine may be busy
DEADLINE_S = patient(90)


class Load:
    """restless.py in a sandbox on the machine, and what it has said so far."""

    def __init__(self, machine: Machine, log: Path, command: list[str]) -> None:
        self.log = log
        self.process = machine.start(["--allow-domain", f"{ALLOWED}:{zone.HTTP_PORT}"], command, log=log)
        self.said: list[str] = []
        self.errors: list[str] = []
        self._changed = threading.Condition()
        streams = ((self.process.stdout, self.said), (self.process.stderr, self.errors))
        self._readers = [threading.Thread(target=self._read, args=each) for each in streams]
        for reader in self._readers:
            reader.start()
        self.wait_until(lambda: "ready" in self.said)
        self.sandbox = Sandbox.of(self.process.pid)

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(holds, DEADLINE_S), f"{self.errors} {self.said[-5:]}"

    def outcomes(self, what: str, since_ns: int = 0) -> list[tuple[int, str]]:
        """(duration in ns, outcome) of each of the witness's connections or queries begun at `since_ns` or later."""
        lines = [line.split() for line in self.said if line.startswith(what)]
        return [(int(end) - int(begun), how) for _, begun, end, how in lines if int(begun) >= since_ns]

    def escapes(self) -> set[str]:
        return {line for line in self.said if line.startswith("escaped")}

    def streams_closed(self) -> bool:
        """Whether nobody holds the command's stdout and our stderr any more."""
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return not any(reader.is_alive() for reader in self._readers)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        assert self.streams_closed()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def capture(world: World) -> Iterator[Capture]:
    running = Capture(world.namespaces.machine)
    yield running
    running.close()


@pytest.fixture
def load(machine: Machine, capture: Capture, tmp_path: Path) -> Iterator[Load]:
    """Under way when the test begins: each way out has been tried and judged. The capture saw it from its first packet
    on.
    """
    started = Load(machine, tmp_path / "audit.ndjson", LOAD)
    assert eventually(lambda: _is_heavy(read_records(started.log)))  # once what is judged last is on record
    yield started
    started.close()
    started.sandbox.close()


@contextmanager
def _at_random(seed: str) -> Iterator[random.Random]:
    """The moment of a round, the same in every run of the suite."""
    chance = random.Random(seed)
    time.sleep(chance.uniform(0, LONGEST_WAIT_S))  # the moment of the crash is what is being varied
    yield chance


def _forbidden(sent: dict[Sent, int]) -> set[Sent]:
    """What no rule permits, or does not come from the machine's own addresses."""
    own = {zone.MACHINE_V4, zone.MACHINE_V6}
    return {
        each for each in sent if (each.protocol, each.address, each.port) not in PERMITTED or each.source not in own
    }


def _assert_nothing_leaked(world: World, capture: Capture, load: Load) -> None:
    sent = capture.outbound()
    assert any(each.port == zone.HTTP_PORT for each in sent), "the load never reached what it may reach"
    assert _forbidden(sent) == set()
    assert load.escapes() == set()
    reached = {(each.service, each.address) for each in world.seen if each.service != "dns"}
    assert reached == {("http", zone.v4("one.example.com"))}
    assert {each.what.split()[0].rstrip(".") for each in world.seen if each.service == "dns"} <= {ALLOWED}


def _is_heavy(records: tuple[Record, ...]) -> bool:
    """Whether each way out was tried and judged."""
    denied = {record.get("denial_category") for record in records if record["decision"] == "deny"}
    return {"datagram", "datagram_connect", "host_denied"} <= denied


def _assert_next_start_cleans_up(sandbox: Sandbox) -> None:
    done = subprocess.run(
        RUN, capture_output=True, text=True, check=False, timeout=DEADLINE_S, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert all(each.ended(0) for each in sandbox.processes())
    assert sandbox.traces() == []


def test_a_leak_would_be_seen(world: World, machine: Machine, capture: Capture) -> None:
    """Without a sandbox the same packets do leave, and the capture and the judge say so."""
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.sendto(b'x', ({DENIED_V4!r}, 9999)); socket.create_connection(({DENIED_V6!r}, 7)).close(); "
        f"socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(b'\\x08' + bytes(7), ({DENIED_V4!r}, 0))"
    )
    assert machine.bare(["python3", "-c", script]).returncode == 0
    seen = {(each.protocol, each.address, each.port) for each in _forbidden(capture.outbound())}
    assert {("udp", DENIED_V4, 9999), ("tcp", DENIED_V6, 7)} <= seen
    assert any("ICMP" in protocol for protocol, _, _ in seen)


@pytest.mark.bypass("proxy-killed")
@pytest.mark.parametrize("number", ROUNDS)
def test_a_killed_proxy_refuses_everything(number: int, world: World, capture: Capture, load: Load) -> None:
    """The command lives on, each further connect(2) fails at once, and those under way are cut."""
    with _at_random(f"proxy {number}"):
        load.sandbox.proxy.kill()
    load.wait_until(lambda: any("the proxy ended (137)" in line for line in load.errors))
    refusing_ns = time.monotonic_ns()
    load.wait_until(lambda: len(load.outcomes("tried", refusing_ns)) >= ATTEMPTS_AFTER)
    for what in ("tried", "asked"):
        assert {how for _, how in load.outcomes(what, refusing_ns)} == {"refused"}
        assert median(duration for duration, _ in load.outcomes(what, refusing_ns)) < AT_ONCE_NS
    assert {how for _, how in load.outcomes("tried")} <= {"served", "cut", "refused"}
    load.process.terminate()
    assert load.process.wait(DEADLINE_S) == 143
    assert load.streams_closed()
    assert load.sandbox.traces() == []  # the supervisor was alive: it has tidied up itself
    _assert_next_start_cleans_up(load.sandbox)
    _assert_nothing_leaked(world, capture, load)


@pytest.mark.bypass("proxy-killed")
def test_who_waits_for_a_killed_proxy_is_told(world: World, machine: Machine, tmp_path: Path) -> None:
    """A connection that the kernel has made and the proxy never took is cut, not left to its client's patience."""
    waiting = Load(machine, tmp_path / "audit.ndjson", ONCE)
    try:
        waiting.sandbox.proxy.kill(signal.SIGSTOP)
        waiting.process.send_signal(signal.SIGUSR1)
        assert eventually(lambda: _is_connected(waiting.sandbox))
        waiting.sandbox.proxy.kill()
        waiting.wait_until(lambda: len(waiting.said) > 1)
        assert waiting.said == ["ready", "cut"]
    finally:
        waiting.close()
        waiting.sandbox.close()


def _is_connected(sandbox: Sandbox) -> bool:
    """Whether the kernel has made a connection inside: both ends are there, and ESTABLISHED (1)."""
    table = Path(f"/proc/{sandbox.inside[0].pid}/net/tcp").read_text()
    return [line.split()[3] for line in table.splitlines()[1:]].count("01") == 2


def _assert_everything_is_dead(load: Load) -> None:
    assert all(each.ended() for each in load.sandbox.processes())
    assert load.process.wait(DEADLINE_S) == -9
    assert load.streams_closed()
    assert {how for _, how in load.outcomes("tried")} <= {"served", "cut", "refused"}
    assert eventually(lambda: sandboxes.netns_users(load.sandbox.netns) == [])


@pytest.mark.bypass("supervisor-killed")
@pytest.mark.parametrize("number", ROUNDS)
def test_a_killed_supervisor_takes_everything_with_it(number: int, world: World, capture: Capture, load: Load) -> None:
    """The command and the proxy are dead by themselves; what is pinned stands until the next start."""
    with _at_random(f"supervisor {number}"):
        load.sandbox.supervisor.kill()
    _assert_everything_is_dead(load)
    assert load.sandbox.pins in load.sandbox.traces()
    _assert_next_start_cleans_up(load.sandbox)
    _assert_nothing_leaked(world, capture, load)


@pytest.mark.bypass("proxy-killed", "supervisor-killed")
@pytest.mark.parametrize("order", ["proxy first", "supervisor first"])
@pytest.mark.parametrize("number", ROUNDS)
def test_both_killed(number: int, order: str, world: World, capture: Capture, load: Load) -> None:
    """In either order, and with any time between: too little for the supervisor to react, or enough."""
    victims = [load.sandbox.proxy, load.sandbox.supervisor]
    first, second = victims if order == "proxy first" else victims[::-1]
    with _at_random(f"{order} {number}") as chance:
        gap_s = chance.choice([0, chance.uniform(0, LONGEST_GAP_S)])
        first.kill()
        time.sleep(gap_s)
        second.kill()
    _assert_everything_is_dead(load)
    _assert_next_start_cleans_up(load.sandbox)
    _assert_nothing_leaked(world, capture, load)


def _descendants(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return direct + [each for child in direct for each in _descendants(child)]
    return []


def _victims(pid: int) -> Iterator[Victim]:
    """The processes below it that have not ended by themselves meanwhile."""
    for each in _descendants(pid):
        with suppress(ProcessLookupError):
            yield Victim(each)


@pytest.mark.bypass("killed-at-start")
@pytest.mark.parametrize("number", range(8))
def test_a_supervisor_killed_while_it_starts(number: int, machine: Machine, tmp_path: Path) -> None:
    """Half a sandbox goes like a whole one: no process outlives it, the next start removes the rest."""
    known = sandboxes.abandoned()
    process = machine.start([], ["sleep", "1000"], log=tmp_path / "audit.ndjson")
    with process:
        time.sleep(random.Random(f"start {number}").uniform(0.1, LONGEST_START_S))  # what is being varied
        victims = list(_victims(process.pid))
        process.kill()
        assert process.communicate(timeout=DEADLINE_S)[0] == ""  # nobody holds its streams any more
    assert all(each.ended() for each in victims)
    for each in victims:
        each.close()
    done = subprocess.run(
        RUN, capture_output=True, text=True, check=False, timeout=DEADLINE_S, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sandboxes.abandoned() <= known
