"""Settings of the label join: how long it waits, what it calls a positive, what it remembers."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["JoinSettings"]

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400 * 366)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class JoinSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How impressions and outcomes become labelled examples; docs/label-join.md has the rules."""

    window_s: Seconds = 600.0
    """How long after an impression an outcome still labels it; an example is emitted when the
    watermark has passed its event time by this much."""
    allowed_lateness_s: Seconds = 60.0
    """How far the watermark stays behind the newest event time: events that are out of order by
    less are joined as if they had come in order."""
    positive_outcomes: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)] = ("click",)
    """Outcomes that make an example a positive; all others are counted and passed over."""
    late_positive_weight: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0
    """Weight of the additional positive that an outcome makes whose impression was emitted."""
    idle_after_s: Seconds = 60.0
    """When no event came for this long, the watermark moves on with the clock."""
    max_future_s: Seconds = 300.0
    """An event whose time is further than this after its arrival is dropped and counted."""
    remember_s: Seconds = 3600.0
    """How far behind the watermark event IDs and impressions are remembered: for duplicates, and
    for outcomes that come after their impression was emitted. An older event is dropped and
    counted."""
    batch_events: Positive = 200_000
    """Most events joined and committed at once; the examples do not depend on it."""
    shard_examples: Positive = 65_536
    """Examples of a shard file; the newest grows until it holds so many."""
    poll_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 0.25
    """How long `twotower join --follow` gathers events before it commits what they gave."""
    max_state_events: Positive = 50_000_000
    """The join stops with an error rather than hold more rows in memory, 16 to 60 bytes each."""

    def __post_init__(self) -> None:
        """Refuse a memory that is shorter than what waits for the watermark."""
        if self.remember_s < self.window_s + self.allowed_lateness_s:
            raise ValueError(
                "expected remember_s of at least window_s + allowed_lateness_s = "
                f"{self.window_s + self.allowed_lateness_s:g}, found {self.remember_s:g}"
            )
