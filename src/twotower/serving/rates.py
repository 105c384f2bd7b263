"""How often a key may ask: a bucket of tokens for each, in every worker."""

from __future__ import annotations

import math
import time
from typing import Final

from twotower.serving.overload import OverloadCounts
from twotower.serving.problems import RefusedRequest

__all__ = ["RateLimit"]

_LIMITED: Final = frozenset({"retrieve", "events"})


class RateLimit:
    """Lets each key ask so many times a second, and a burst after a pause."""

    def __init__(self, per_s: float, burst: int, counts: OverloadCounts) -> None:
        """0 a second is no limit."""
        self._per_s = per_s
        self._burst = float(burst)
        self._counts = counts
        self._buckets: dict[str, tuple[float, float]] = {}
        """By key: tokens, and when there were so many."""

    def take(self, key_id: str, scope: str) -> None:
        """Take a token for a request.

        Raises:
            RefusedRequest: there is none: 429, with the seconds until there is.
        """
        if self._per_s == 0 or scope not in _LIMITED:
            return
        now_s = time.perf_counter()
        tokens, at_s = self._buckets.get(key_id, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - at_s) * self._per_s)
        if tokens >= 1.0:
            self._buckets[key_id] = (tokens - 1.0, now_s)
            return
        self._buckets[key_id] = (tokens, now_s)
        self._counts.request_shed("rate")
        wait_s = max(1, math.ceil((1.0 - tokens) / self._per_s))
        raise RefusedRequest(
            429,
            f"the key may ask {self._per_s:g} times a second of a worker; come again",
            headers=((b"retry-after", str(wait_s).encode()),),
        )
