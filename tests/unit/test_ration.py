"""How many names may be invented."""

from __future__ import annotations

from dataclasses import dataclass

from nono_ebpf.dns.limits import Limits
from nono_ebpf.dns.ration import Ration
from nono_ebpf.model import Process
from nono_ebpf.policy.rules import HostRules, Policy, parse_allow_rule

LIMITS = Limits(
    new_names_of_process=2, new_names_of_process_per_s=1, new_names=3, new_names_per_s=1, name_paid_s=60, paid_names=4,
    rationed_processes=2,
)  # fmt: skip
FIRST, SECOND = (Process(pid, "dig", 1000, 7) for pid in (1, 2))


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def ration(clock: Clock | None = None) -> Ration:
    rules = [parse_allow_rule(text, "test") for text in ("a.test", "*.a.test", "db.a.test:5432")]
    return Ration(Policy(HostRules(rules), HostRules()), LIMITS, clock or Clock())


def admitted(of: Ration, process: Process | None, *hosts: str) -> list[bool]:
    return [of.admit(host, process) for host in hosts]


def test_a_name_that_a_rule_spells_out_is_free() -> None:
    """However often, and whatever else was asked for."""
    it = ration()
    admitted(it, FIRST, *(f"{n}.a.test" for n in range(9)))
    assert admitted(it, FIRST, "a.test", "db.a.test", "a.test") == [True] * 3


def test_a_process_has_a_share_and_the_sandbox_a_bound() -> None:
    """One process cannot use up everything; many cannot use more than there is."""
    it = ration()
    assert admitted(it, FIRST, "1.a.test", "2.a.test", "3.a.test") == [True, True, False]
    assert admitted(it, SECOND, "4.a.test", "5.a.test") == [True, False]


def test_an_unknown_process_is_one_process() -> None:
    """Who hides from the kernel's record gains nothing."""
    assert admitted(ration(), None, "1.a.test", "2.a.test", "3.a.test") == [True, True, False]


def test_a_name_of_late_is_free_and_time_brings_new_ones() -> None:
    """A and AAAA of one name, and asking again, are one name."""
    clock = Clock()
    it = ration(clock)
    assert admitted(it, FIRST, "1.a.test", "2.a.test", "1.a.test", "2.a.test", "3.a.test") == [True] * 4 + [False]
    clock.now_s += 1
    assert admitted(it, FIRST, "3.a.test", "4.a.test") == [True, False]
    clock.now_s += 60
    assert admitted(it, FIRST, "5.a.test", "6.a.test", "1.a.test") == [True, True, False]


def test_a_name_in_use_stays_paid_for() -> None:
    """Also while others use up what is left for new ones."""
    clock = Clock()
    it = ration(clock)
    assert it.admit("1.a.test", FIRST)
    for number in range(9):
        clock.now_s += 50
        admitted(it, SECOND, f"x{number}.a.test", f"y{number}.a.test", f"z{number}.a.test")
        assert it.admit("1.a.test", FIRST)


def test_its_memory_is_bounded() -> None:
    """Names and processes that come and go leave nothing behind."""
    clock = Clock()
    it = ration(clock)
    for n in range(50):
        clock.now_s += 1
        assert it.admit(f"{n}.a.test", Process(n, "dig", 1000, 7))
    assert (len(it._lately), len(it._by_process)) == (4, 2)
