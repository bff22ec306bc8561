"""What is known of each class after a run: the worst that one of its tests has shown."""

from __future__ import annotations

from typing import NamedTuple

from catalogue import CATALOGUE

HELD, REFUSED, REPORTED, LEAKS, NOT_TRIED = "held", "refused to start", "reported", "LEAKS", "not tried"
_WORST_LAST = (NOT_TRIED, HELD, REFUSED, REPORTED, LEAKS)


class Verdict(NamedTuple):
    """One test's word on a class."""

    result: str
    why: str


class Results:
    """Collects verdicts."""

    def __init__(self) -> None:
        self._worst: dict[str, Verdict] = {}
        self._tests: dict[str, int] = {}

    def add(self, slug: str, verdict: Verdict | None) -> None:
        """One more test of a class; None says nothing."""
        if verdict is None:
            return
        known = self._worst.get(slug, verdict)
        self._worst[slug] = max(known, verdict, key=lambda each: _WORST_LAST.index(each.result))
        self._tests[slug] = self._tests.get(slug, 0) + (verdict.result != NOT_TRIED)

    def by_class(self) -> dict[str, dict[str, str | int]]:
        """Result, reason and number of tests of every class of the catalogue, in its order."""
        never = Verdict(NOT_TRIED, "no test ran")
        found = {slug: self._worst.get(slug, never) for slug in CATALOGUE}
        return {slug: {**each._asdict(), "tests": self._tests.get(slug, 0)} for slug, each in found.items()}
