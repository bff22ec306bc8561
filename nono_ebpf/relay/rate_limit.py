"""How many requests a service may be sent: a token bucket, as nono's `rate_limit` describes it.

Knows a clock. Does not wait itself, and must not know what is limited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MINUTE_S = 60.0


class RateLimiter:
    """`burst` requests at once, `requests_per_minute` in the long run; 0 is no limit.

    Requests that have to wait are given their turns in the order in which they ask, and there are never more than have
    theirs within `max_delay_s`. A turn that is not used is lost.
    """

    def __init__(self, requests_per_minute: int, burst: int, max_delay_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = _MINUTE_S / requests_per_minute if requests_per_minute else 0.0
        # A bucket that holds nothing would never let anything through.
        self._allowance_s = self._interval_s * (max(burst, 1) - 1)
        self._max_delay_s, self._clock = max_delay_s, clock
        self._full_at_s = clock()  # when the bucket will be full, if nobody asks any more

    def reserve(self) -> float | None:
        """Seconds until the caller's turn, which is now taken; None: refuse, it would have to wait for too long."""
        now_s = self._clock()
        full_at_s = max(self._full_at_s, now_s)
        wait_s = max(0.0, full_at_s - self._allowance_s - now_s)
        if wait_s > self._max_delay_s:
            return None
        self._full_at_s = full_at_s + self._interval_s
        return wait_s
