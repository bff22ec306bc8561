"""How many requests get through, and when."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nono_ebpf.relay.rate_limit import RateLimiter


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def turns(limiter: RateLimiter, count: int) -> list[float | None]:
    return [limiter.reserve() for _ in range(count)]


@pytest.mark.parametrize(
    ("rpm", "burst", "delay_s", "expected"),
    [
        pytest.param(1, 1, 0, [0, None, None], id="E19"),
        pytest.param(0, 1, 0, [0, 0, 0], id="O6-off"),
        pytest.param(60, 0, 0, [0, None, None], id="O6-burst"),
        (60, 3, 0, [0, 0, 0, None]),
        (60, 2, 2, [0, 0, 1, 2, None, None]),
        (120, 1, 1, [0, 0.5, 1, None]),
        (60, 1, 0.5, [0, None]),
    ],
)
def test_all_at_once(rpm: int, burst: int, delay_s: float, expected: list[float | None]) -> None:
    """The burst goes at once, the next ones in turn, and who would have to wait for longer than allowed is refused."""
    assert turns(RateLimiter(rpm, burst, delay_s, Clock()), len(expected)) == expected


def test_time_brings_new_turns() -> None:
    """At the rate asked for, one by one."""
    clock = Clock()
    limiter = RateLimiter(60, 2, 0, clock)
    assert turns(limiter, 3) == [0, 0, None]
    clock.now_s += 0.5
    assert turns(limiter, 1) == [None]
    clock.now_s += 0.5
    assert turns(limiter, 2) == [0, None]


@pytest.mark.parametrize("idle_s", [pytest.param(3600, id="O6-idle"), 5, 1e9])
def test_an_idle_time_saves_no_more_than_the_burst(idle_s: float) -> None:
    """Turns are not saved up."""
    clock = Clock()
    limiter = RateLimiter(60, 5, 0, clock)
    turns(limiter, 5)
    clock.now_s += idle_s
    assert turns(limiter, 6) == [0] * 5 + [None]


def test_who_is_refused_takes_no_turn() -> None:
    """However often: those who wait are not pushed back, and the next turn is free when it is due."""
    clock = Clock()
    limiter = RateLimiter(60, 1, 1, clock)
    assert turns(limiter, 2) == [0, 1]
    assert turns(limiter, 1000) == [None] * 1000
    clock.now_s += 1
    assert turns(limiter, 2) == [1, None]


def test_turns_are_in_order_and_apart() -> None:
    """Nobody who asks later is served earlier, and in no minute are there more than the burst and the rate."""
    clock = Clock()
    limiter = RateLimiter(60, 3, 10, clock)
    served = []
    for _ in range(300):
        clock.now_s += 0.25
        if (wait_s := limiter.reserve()) is not None:
            served.append(clock.now_s + wait_s)
    assert served == sorted(served)
    assert all(later - earlier >= 57 for earlier, later in zip(served, served[60:], strict=False))


def test_a_clock_that_stands_still_or_goes_back() -> None:
    """No turn is given twice for it."""
    clock = Clock()
    limiter = RateLimiter(60, 1, 0, clock)
    assert turns(limiter, 1) == [0]
    clock.now_s -= 100
    assert turns(limiter, 2) == [None, None]
