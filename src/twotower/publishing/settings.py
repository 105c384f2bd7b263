"""Settings of publishing: the bars of the gates and the sizes of their samples."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["GateSettings", "PublishingSettings"]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a candidate must reach before it can become live without `--force`."""

    max_mean_cosine: Share = 0.9
    """Mean cosine of two different item vectors above which the item tower has collapsed."""
    max_mean_user_cosine: Share = 0.98
    """The same for user vectors, which share more: above it, all users get one list."""
    ann_recall_at_100: Share = 0.95
    """Lowest recall of the built index against exact search."""
    max_search_us: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Longest median of one search as the publish measures it; 0: any."""
    max_tower_difference: Annotated[float, msgspec.Meta(gt=0)] = 1e-5
    """Largest difference of a coordinate between the trainer's and the served user vector."""
    max_corpus_loss: Share = 0.1
    """Share of the parent's corpus that may disappear in one generation."""
    min_recognised: Share = 0.9
    """Share of the IDs whose embedding must be nearer to their own of before than to another's."""
    max_window_loss: Share = 0.5
    """Share by which the positives a day may fall below those of the parent's window."""
    max_coverage_loss: Share = 0.5
    """Share of the live generation's coverage that may be lost."""
    max_recall_loss: Share = 0.02
    """Share of the live generation's recall that may be lost, beside what noise explains."""
    confidence: Annotated[float, msgspec.Meta(ge=0.5, lt=1)] = 0.99
    """One-sided confidence of the two gates on held-out recall."""
    holdout_positives: Annotated[int, msgspec.Meta(ge=0)] = 500
    """Positives of a window left for the next night, to judge this one by; 0 switches that off."""
    holdout_max_share: Share = 0.1
    """Largest share of a window's positives that is held out."""
    holdout_min_positives: Positive = 100
    """Where the share allows fewer, nothing is held out and recall is not judged."""


class PublishingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a generation is written and judged."""

    gates: GateSettings = GateSettings()
    num_probe_users: Positive = 500
    """Users whose vectors measure the ANN recall and the agreement of the towers."""
    batch_rows: Positive = 1024
    """Users or items that go through a tower at once while publishing."""
    threads: Positive = 1
    """Threads of one tower call."""
