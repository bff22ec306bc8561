"""How many names that no rule spells out may be asked for.

`*.example.com` permits any number of names, and each of them may go to the host's nameservers: one program could keep
these busy, wear out their patience with this host, and leave no lookup for the other programs of the sandbox. So new
names are rationed, per process and, because a process may fork, in all. A name that a rule spells out is never
rationed, and one that was asked for lately costs nothing.

Knows rules and a clock. Must not know how names are resolved.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nono_ebpf.dns.limits import Limits
    from nono_ebpf.model import Process
    from nono_ebpf.policy.rules import Policy


class _Bucket:
    """Holds `size` tokens, refilled steadily."""

    def __init__(self, size: int, per_s: float, now_s: float) -> None:
        self._size, self._per_s = size, per_s
        self._tokens, self._at_s = float(size), now_s

    def holds_one(self, now_s: float) -> bool:
        self._tokens = min(self._size, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return self._tokens >= 1

    def take(self) -> None:
        self._tokens -= 1


class Ration:
    """Of one sandbox. Remembers a bounded number of names and processes."""

    def __init__(self, policy: Policy, limits: Limits, clock: Callable[[], float]) -> None:
        self._policy, self._limits, self._clock = policy, limits, clock
        self._all = _Bucket(limits.new_names, limits.new_names_per_s, clock())
        self._by_process: OrderedDict[int | None, _Bucket] = OrderedDict()
        self._lately: OrderedDict[str, float] = OrderedDict()

    def spelled_out(self, host: str) -> bool:
        """Whether a rule names `host` itself."""
        rule = self._policy.allow.match(host, None)
        return rule is not None and rule.pattern == host

    def admit(self, host: str, process: Process | None) -> bool:
        """Whether the permitted `host` may be asked for now; then it may for a while."""
        if self.spelled_out(host):
            return True
        now_s = self._clock()
        if self._lately.get(host, 0.0) > now_s:
            self._remember(host, now_s)  # a name in use stays paid for
            return True
        mine = self._bucket_of(process.pid if process else None, now_s)
        if not (mine.holds_one(now_s) and self._all.holds_one(now_s)):
            return False
        mine.take()
        self._all.take()
        self._remember(host, now_s)
        return True

    def _bucket_of(self, pid: int | None, now_s: float) -> _Bucket:
        limits = self._limits
        bucket = self._by_process.get(pid)
        if bucket is None:
            bucket = _Bucket(limits.new_names_of_process, limits.new_names_of_process_per_s, now_s)
            self._by_process[pid] = bucket
        self._by_process.move_to_end(pid)
        if len(self._by_process) > limits.rationed_processes:
            self._by_process.popitem(last=False)
        return bucket

    def _remember(self, host: str, now_s: float) -> None:
        self._lately[host] = now_s + self._limits.name_paid_s
        self._lately.move_to_end(host)
        if len(self._lately) > self._limits.paid_names:
            self._lately.popitem(last=False)
