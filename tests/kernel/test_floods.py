"""One program of a sandbox does its worst, and another one goes on working.

::

    sandbox                                     machine        world
    floods.py ─┬─ the flood, forked ─────────►  proxy  ─────►  two.example.com   permitted by a wildcard
               └─ requests one after the other ►       ─────►  one.example.com   spelled out
                  and one connection from before the flood

The flood lasts from before the first request until after the last one. No deadline is asserted but the client's own
patience: what counts is that every request is answered, and that the proxy stays small.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.machine import read_records
from kit.patience import patient
from kit.sandboxes import Sandbox

if TYPE_CHECKING:
    from kit.machine import Record
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("floods.py")
RULES = ("one.example.com", "*.example.com", "echo.example.com:7")
OPTIONS = [part for rule in RULES for part in ("--allow-domain", rule)]
REQUESTS = 5
TIMEOUT_S = patient(600)
MOST_RESIDENT_KIB = 160 << 10
SLOTS = 4096


@dataclass
class Flooded:
    """What the good client got, and what became of the proxy meanwhile."""

    took: list[float]
    records: tuple[Record, ...]
    lasted_s: float = 0.0  # from before it began until after it had ended
    peak_kib: int = 0
    descriptors: int = 0
    errors: str = field(repr=False, default="")
    asked: frozenset[str] = frozenset()  # of the world's nameserver

    def ended(self) -> list[Record]:
        """The flows that had to make way."""
        return [each for each in self.records if "make room" in str(each.get("reason"))]


@functools.cache
def _flooded(world: World, kind: str) -> Flooded:
    """One flood, however many tests ask for it."""
    log = world.work / f"flood-{kind}.ndjson"
    command = world.machine._shown([sys.executable, str(PROGRAM), kind, str(REQUESTS)])
    began = time.monotonic()
    running = world.machine.start(OPTIONS, command, log=log)
    flooded = Flooded([], ())

    def measure() -> None:
        sandbox = Sandbox.of(running.pid)
        status = Path(f"/proc/{sandbox.proxy.pid}/status").read_text()
        (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        flooded.peak_kib = int(peak.split()[1])
        flooded.descriptors = len(list(Path(f"/proc/{sandbox.proxy.pid}/fd").iterdir()))
        sandbox.close()

    world.servers.on_echo = measure
    with running:
        out, flooded.errors = running.communicate(timeout=TIMEOUT_S)
    flooded.lasted_s = time.monotonic() - began
    assert out, flooded.errors
    flooded.took, flooded.records = json.loads(out), read_records(log)
    flooded.asked = frozenset(each.what for each in world.seen if each.service == "dns")
    return flooded


KINDS = (
    "idle", "idle_processes", "idle_clients_of_the_proxy", "idle_tunnels", "half_handshakes", "slow_heads",
    "slow_hellos", "unread", "datagrams", "dns_connections",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_others_go_on(world: World, kind: str) -> None:
    """Whatever a program holds, drips or throws, another one gets every answer, and no connection in use is lost."""
    flooded = _flooded(world, kind)
    took = flooded.took
    print(
        f"{kind}: median {took[REQUESTS // 2]:.3f} s, worst {took[-1]:.3f} s; proxy {flooded.peak_kib} KiB, {flooded}"
    )
    assert len(took) == REQUESTS, flooded
    good = [each for each in flooded.records if each["event"] == "request" and each.get("target") == "one.example.com"]
    assert [each["status"] for each in good] == [200] * (2 * REQUESTS + 1)
    assert 0 < flooded.peak_kib < MOST_RESIDENT_KIB


def test_the_bounds_that_were_reached_are_on_record(world: World) -> None:
    """Not each of thousands: a record a minute that says which bound it was, and whose connections or names."""
    crowded, asking = _flooded(world, "idle"), _flooded(world, "datagrams")
    for record in crowded.ended():
        assert record["reason"].startswith(f"ended to make room: {SLOTS} connections were open")
        assert (record["comm"][:6], record["target"]) == ("python", "two.example.com")
    told = [each for each in asking.records if each.get("denial_category") == "rate"]
    for records, flooded in ((crowded.ended(), crowded), (told, asking)):
        assert 0 < len(records) <= 5 + flooded.lasted_s / 60


def test_invented_names_are_rationed(world: World) -> None:
    """A flood of names under a wildcard reaches the nameserver in a bounded number: some at once, then so many a
    second.
    """
    flooded = _flooded(world, "datagrams")
    assert 100 < len(flooded.asked) < 1000 + 40 * flooded.lasted_s
