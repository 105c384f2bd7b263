"""What a replay found: recall by strategy, paired intervals by user, recall over time.

Legend: `q` scored clicks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from twotower.data.schema import IntArray
from twotower.errors import DataError
from twotower.metrics import Interval, bootstrap_interval, paired_bootstrap
from twotower.replay.live import LiveScores
from twotower.replay.stream import LiveStream

__all__ = ["LIVE_KS", "Compared", "compare", "describe", "over_time", "quantiles_s"]

LIVE_KS: Final = (20, 50)


class Compared(NamedTuple):
    """One strategy's figures and how they differ from those of another, over the same clicks."""

    recall: dict[int, Interval]
    """By `k`: share of the clicks whose item was among the first `k`, users resampled."""
    difference: dict[int, Interval] | None
    """The same less the reference's, paired by click; None for the reference itself."""


def compare(
    stream: LiveStream, scores: Mapping[str, LiveScores], reference: str, seed: int = 0
) -> dict[str, Compared]:
    """Return every strategy's recall and its difference from the reference's.

    Raises:
        DataError: the strategies did not score the same clicks.
    """
    asked = scores[reference].question
    users = stream.questions.user[asked]
    hits = {name: _hits(found, asked) for name, found in scores.items()}
    return {
        name: Compared(
            {k: bootstrap_interval(hits[name][k], users, seed) for k in LIVE_KS},
            None
            if name == reference
            else {
                k: paired_bootstrap(hits[name][k], hits[reference][k], users, seed) for k in LIVE_KS
            },
        )
        for name in scores
    }


def _hits(scores: LiveScores, asked: IntArray) -> dict[int, Any]:
    if not np.array_equal(scores.question, asked):
        raise DataError("expected strategies that scored the same clicks, found different ones")
    return {k: (scores.rank < k).astype(np.float64) for k in LIVE_KS}


def describe(difference: Interval) -> str:
    """Return a difference as people read it; one whose interval holds zero shows nothing."""
    span = f"{difference.low:+.4f} to {difference.high:+.4f}"
    if difference.low <= 0 <= difference.high:
        return f"no difference seen ({span})"
    return f"{difference.estimate:+.4f} ({span})"


def over_time(
    stream: LiveStream, scores: LiveScores, *, k: int, bucket_s: float
) -> tuple[list[int], list[float | None]]:
    """Return the recall of each stretch of simulated time, None where nothing was scored.

    Returns:
        When each stretch begins, in milliseconds; the share of its clicks among the first `k`.
    """
    step_ms = round(bucket_s * 1000)
    times = stream.questions.event_time_ms[scores.question]
    num = -(-(int(stream.ends_ms[-1]) - stream.start_ms) // step_ms)
    bucket = np.clip((times - stream.start_ms) // step_ms, 0, num - 1)
    asked = np.bincount(bucket, minlength=num)
    hits = np.bincount(bucket, weights=scores.rank < k, minlength=num)
    shares = [float(hit / n) if n else None for hit, n in zip(hits, asked, strict=True)]
    return [stream.start_ms + step_ms * place for place in range(num)], shares


def quantiles_s(scores: LiveScores) -> dict[str, float] | None:
    """Return the median and the 99th percentile of the freshness; None where nothing learned."""
    if not len(scores.freshness_s):
        return None
    p50, p99 = np.quantile(scores.freshness_s, [0.5, 0.99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
