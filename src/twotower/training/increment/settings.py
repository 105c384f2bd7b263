"""Settings of incremental updates."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["IncrementSettings"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]


class IncrementSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the stream moves ID embeddings between two nights; everything else stays as it is."""

    rows: Literal["user", "user_and_item"] = "user"
    """user: user ID rows learn against the item vectors that the index serves; user_and_item: ID
    rows of the stream's items learn too, and their new vectors are published with the users'."""
    accumulators: Literal["copy", "fresh"] = "copy"
    """Adagrad's accumulators start as a copy of the full model's, or from zero, which makes the
    first steps of the day long."""
    popularity: Literal["cut", "live"] = "cut"
    """live: the model's popularity coordinate follows the trained positives of the stream, and a
    delta brings every item whose coordinate moved; cut: it stays as of the base's cut."""
    popularity_step: PositiveFloat = 0.1
    """Of the log of decayed clicks, above which a live coordinate is sent anew."""
    learning_rate: PositiveFloat = 0.05
    """Of row-wise Adagrad, for the ID rows that learn."""
    batch_size: Positive = 512
    """Examples a step, in the order of the stream."""
    uniform: Annotated[int, msgspec.Meta(ge=0)] = 512
    """Negatives drawn uniformly from the corpus, shared by a step's examples."""
    user_limit: Positive = 100
    """Examples of one user that are trained in one `user_window_s`; what is more is counted."""
    user_window_s: Positive = 3600
    """Seconds of event time after which a user's count starts anew."""
    publish_every_s: PositiveFloat = 1800.0
    """Time between two deltas of `twotower increment --follow`."""
    commit_every: Positive = 65_536
    """Examples after which the state is stored, so that a killed process repeats no more."""
    loss_limit: Annotated[float, msgspec.Meta(gt=1)] = 1.5
    """The loss of the newest steps over that of the first, above which publishing stops."""
