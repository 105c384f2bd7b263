"""The report of a replay: what `--json` prints, and what tables and pictures are made from."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twotower.metrics import Interval
from twotower.replay.comparison import Compared, compare, describe, over_time, quantiles_s
from twotower.replay.live import LiveScores
from twotower.replay.stream import LiveStream

__all__ = ["ReplayReport", "StrategyReport", "report_of"]

_BUCKET_S = 3 * 3600.0


class StrategyReport(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy over all scored clicks; `[low, high]` are 95 % intervals, users resampled."""

    recall_at_20: float
    recall_at_50: float
    interval_at_50: tuple[float, float]
    difference_at_50: float | None = None
    """Recall@50 less the reference's, paired by click; None for the reference."""
    difference_interval_at_50: tuple[float, float] | None = None
    reading: str = "the reference"
    """The difference as people read it: where its interval holds zero, no difference is seen."""
    publish_every_s: float | None = None
    deltas_published: int = 0
    freshness_s: dict[str, float] | None = None
    """p50 and p99, in simulated seconds, from a click to served rows that learned from it."""


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found."""

    days: tuple[str, ...]
    base: str
    """Name of the generation that all strategies start from."""
    reference: str
    """The strategy that the others are compared with."""
    clicks: int
    """Scored: the item had not been shown to the user at an earlier time."""
    clicks_seen_before: int
    """Left out."""
    strategies: dict[str, StrategyReport]
    answers_checked: int
    """Clicks that a retriever was asked about too."""
    answers_differing: int
    """Of these, where it had the item more than one place from where the batch had it."""
    bucket_s: float
    bucket_starts_ms: list[int]
    recall_at_50_over_time: dict[str, list[float | None]]
    """By strategy, a figure for each stretch of `bucket_s`."""
    seconds: float
    """Wall time of the replay."""


def report_of(
    stream: LiveStream,
    scores: Mapping[str, LiveScores],
    *,
    base: str,
    reference: str,
    publish_every_s: Mapping[str, float],
    seconds: float,
    answers_checked: int = 0,
    answers_differing: int = 0,
    bucket_s: float = _BUCKET_S,
) -> ReplayReport:
    """Return the report of strategies that scored the same clicks.

    Raises:
        DataError: they scored different ones.
    """
    compared = compare(stream, scores, reference)
    lines = {
        name: over_time(stream, found, k=50, bucket_s=bucket_s) for name, found in scores.items()
    }
    num_scored = len(scores[reference].question)
    return ReplayReport(
        days=stream.days,
        base=base,
        reference=reference,
        clicks=num_scored,
        clicks_seen_before=int((~stream.questions.is_scored).sum()),
        strategies={
            name: _strategy(compared[name], found, publish_every_s.get(name))
            for name, found in scores.items()
        },
        answers_checked=answers_checked,
        answers_differing=answers_differing,
        bucket_s=bucket_s,
        bucket_starts_ms=lines[reference][0],
        recall_at_50_over_time={
            name: [None if share is None else round(share, 5) for share in shares]
            for name, (_, shares) in lines.items()
        },
        seconds=round(seconds, 1),
    )


def _strategy(found: Compared, scores: LiveScores, publish_every_s: float | None) -> StrategyReport:
    difference = found.difference[50] if found.difference else None
    return StrategyReport(
        recall_at_20=round(found.recall[20].estimate, 5),
        recall_at_50=round(found.recall[50].estimate, 5),
        interval_at_50=_span(found.recall[50]),
        difference_at_50=None if difference is None else round(difference.estimate, 5),
        difference_interval_at_50=None if difference is None else _span(difference),
        reading="the reference" if difference is None else describe(difference),
        publish_every_s=publish_every_s,
        deltas_published=scores.deltas_published,
        freshness_s=quantiles_s(scores),
    )


def _span(interval: Interval) -> tuple[float, float]:
    return round(interval.low, 5), round(interval.high, 5)
