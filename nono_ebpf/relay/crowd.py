"""The open flows of one sandbox, and which of them end when there is no room for another.

Knows when a flow carried something and whose it is. Must not know how connections are accepted or flows ended.

Whoever holds the most gives way. A fixed bound per process would be too low for one honest program that has the sandbox
to itself, and no bound for one that forks; this way a program which forks a hundred times still leaves every other one
a hundredth of all slots. Of the largest holder's flows those end first on which nothing has come back, the oldest
before the others, then those that have been idle longest. No time is involved, so a slow machine changes nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from nono_ebpf.audit.window import Window, Worth

if TYPE_CHECKING:
    from collections.abc import Hashable

    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.stream import Activity


class Member(Protocol):
    """One open flow."""

    @property
    def owner(self) -> int | None:
        """The process it belongs to; None while that is unknown."""

    def activity(self) -> Activity:
        """What its client was sent, and when."""

    def make_way(self, reason: str) -> None:
        """End soon, with `reason` on record."""


class Crowd:
    """Every open flow, in the order of arrival."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._members: dict[Member, None] = {}
        self._window = Window(limits.displaced_records, limits.displaced_window_s, time.monotonic)

    def join(self, member: Member) -> None:
        """From now on `member` counts, and may have to make way."""
        self._members[member] = None

    def leave(self, member: Member) -> None:
        """It has ended, for whatever reason."""
        self._members.pop(member, None)

    def make_room(self) -> None:
        """Tell a few flows to end; they do so in the next turns of the loop."""
        held = Counter(member.owner for member in self._members)
        most = max(held.values(), default=0)
        largest = [member for member in self._members if held[member.owner] == most]
        # Never more than half of what it has, or the largest would end below the others.
        leaving = self._least_useful(largest, min(max(1, most // 2), self._limits.displaced_at_once))
        reason = f"ended to make room: {len(self._members)} connections were open, {most} of them this process's"
        for member in leaving:
            self.leave(member)
            member.make_way(reason)

    def worth_recording(self, kind: Hashable) -> Worth:
        """Whether one more flow that made way, of this `kind`, is worth a record."""
        return self._window.judge(kind)

    def piece_bytes(self) -> int:
        """How much one flow may take into memory at once: a share of what all may, within bounds."""
        share = self._limits.bodies_bytes // max(1, len(self._members))
        return max(self._limits.piece_bytes, min(share, self._limits.copy_bytes))

    def _least_useful(self, members: list[Member], count: int) -> list[Member]:
        # In order of arrival, so that in a flood of connections the look ends after a few.
        unanswered = list(islice((member for member in members if not member.activity().answered), count))
        if unanswered:
            return unanswered
        return sorted(members, key=lambda member: member.activity().idle_ms, reverse=True)[:count]
