"""Who gives way when every slot is taken, and what every flow may take of the memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from kit.relaying import LIMITS, SCRIPT_S, Relaying, Run, run

from nono_ebpf.relay.crowd import Crowd
from nono_ebpf.relay.stream import Activity

__all__ = ["run"]


@dataclass(eq=False)
class Flow:
    """One that remembers why it had to go."""

    owner: int | None
    answered: bool = False
    idle_ms: int = 0
    reasons: list[str] = field(default_factory=list)

    def activity(self) -> Activity:
        return Activity(self.answered, self.idle_ms)

    def make_way(self, reason: str) -> None:
        self.reasons.append(reason)


def crowd(*flows: Flow, at_once: int = 1) -> Crowd:
    made = Crowd(replace(LIMITS, displaced_at_once=at_once))
    for flow in flows:
        made.join(flow)
    return made


def test_whoever_holds_the_most_gives_way() -> None:
    """A client with few flows keeps them, answered or not, however old."""
    few = [Flow(1), Flow(1)]
    many = [Flow(2, answered=True), Flow(2), Flow(2)]
    crowd(*few, *many).make_room()
    assert [flow.reasons for flow in few] == [[], []]
    assert many[1].reasons == ["ended to make room: 5 connections were open, 3 of them this process's"]
    assert [flow.reasons for flow in many[::2]] == [[], []]


def test_flows_without_an_answer_go_first_and_the_oldest_of_them() -> None:
    """What nothing has come back on carries nothing that is lost."""
    flows = [Flow(1, answered=True, idle_ms=9000), Flow(1, idle_ms=1), Flow(1, idle_ms=5000)]
    crowd(*flows).make_room()
    assert [bool(flow.reasons) for flow in flows] == [False, True, False]


def test_then_those_that_were_idle_longest() -> None:
    """A flow in use is the last to go."""
    flows = [Flow(1, answered=True, idle_ms=idle_ms) for idle_ms in (3, 9, 5)]
    crowd(*flows).make_room()
    assert [bool(flow.reasons) for flow in flows] == [False, True, False]


def test_nobody_falls_below_half_of_what_it_held() -> None:
    """Several go at once, but never so many that the largest becomes the smallest; whoever went is not asked again."""
    flows = [Flow(1) for _ in range(6)]
    them = crowd(*flows, at_once=32)
    them.make_room()
    assert [bool(flow.reasons) for flow in flows] == [True] * 3 + [False] * 3
    them.make_room()
    assert [len(flow.reasons) for flow in flows] == [1, 1, 1, 1, 0, 0]


def test_nobody_there() -> None:
    """An empty room needs nothing."""
    crowd().make_room()


def test_the_more_flows_the_smaller_their_pieces() -> None:
    """Bodies under way have a bound in all, and each flow goes on."""
    limits = replace(LIMITS, bodies_bytes=400, copy_bytes=100, piece_bytes=10)
    them = Crowd(limits)
    sizes = []
    for _ in range(50):
        them.join(Flow(1))
        sizes.append(them.piece_bytes())
    assert sizes[:5] == [100, 100, 100, 100, 80]
    assert sizes[-1] == 10


def test_a_flow_that_makes_way_is_reset_and_recorded(run: Run) -> None:
    """Both ends see an abort, the newcomer is served, and one record stands for all of a kind."""

    async def script() -> None:
        limits = replace(LIMITS, flows=2, displaced_at_once=1)
        async with Relaying("a.test", limits=limits) as it:
            for _ in range(2):
                client = await it.connect("a.test")
                server = await it.accept()
                kept, kept_server = await it.connect("a.test"), await it.accept()
                newcomer, far = await it.connect("a.test"), await it.accept()
                for end in (client, server):
                    with pytest.raises(ConnectionResetError):
                        await end.receive_all()
                await newcomer.send(b"\0hello")
                assert await far.receive(6) == b"\0hello"
                for end in (kept, kept_server, newcomer, far):
                    end.close()
                await it.relay.drain(SCRIPT_S)
            reasons = [record.reason for record in it.records if record.reason]
            assert reasons == ["ended to make room: 2 connections were open, 2 of them this process's"]

    run(script())
