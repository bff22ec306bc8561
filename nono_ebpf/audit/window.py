"""Which of many like events are worth a line in the audit log.

A program in a retry loop does the same thing a thousand times a second, and a hostile one a new thing. Knows keys and a
clock; must not know what they stand for.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Worth(Enum):
    """What to do about one event."""

    RECORD = "record it"
    OVERFLOW = "record once that there are more than are recorded"
    NOTHING = "it is known, or too much"


class Window:
    """Each key once per `length_s`, and at most `limit` keys; then everything is forgotten."""

    def __init__(self, limit: int, length_s: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._length_s = length_s
        self._clock = clock
        self._seen: set[Hashable] = set()
        self._overflowed = False
        self._ends_s = clock() + length_s

    def judge(self, key: Hashable) -> Worth:
        """Whether `key` is worth a record now; it counts as recorded from then on."""
        if (now_s := self._clock()) >= self._ends_s:
            self._seen.clear()
            self._overflowed = False
            self._ends_s = now_s + self._length_s
        if key in self._seen:
            return Worth.NOTHING
        if len(self._seen) < self._limit:
            self._seen.add(key)
            return Worth.RECORD
        overflowed, self._overflowed = self._overflowed, True
        return Worth.NOTHING if overflowed else Worth.OVERFLOW
