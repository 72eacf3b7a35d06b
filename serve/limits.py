"""How often a key may ask: a token bucket a key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pipeline.feedback.keys import Key

MAX_BUCKETS = 10_000  # beyond, full buckets are forgotten: they say nothing


class RateLimiter:
    """``per_minute`` requests a key, of which a tenth may come at once; 0 limits nobody.

    Each replica counts for itself, so the builder gives each its share.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._size = max(1.0, per_minute / 10)
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}  # key -> (tokens, when)

    def wait_s(self, key: Key) -> float:
        """0, and the request is counted; or the seconds until the key may ask again."""
        if self._rate == 0:
            return 0.0
        now, who = self._clock(), (key.tenant, key.name)
        tokens, when = self._buckets.get(who, (self._size, now))
        tokens = min(self._size, tokens + (now - when) * self._rate)
        if tokens < 1:
            return (1 - tokens) / self._rate
        if len(self._buckets) >= MAX_BUCKETS:
            self._forget_full(now)
        self._buckets[who] = (tokens - 1, now)
        return 0.0

    def _forget_full(self, now: float) -> None:
        kept = {
            who: (t, when) for who, (t, when) in self._buckets.items() if t + (now - when) * self._rate < self._size
        }
        self._buckets = kept


def retry_after(seconds: float) -> str:
    """The header's whole seconds, at least 1."""
    return str(max(1, math.ceil(seconds)))
