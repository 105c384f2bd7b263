"""Settings of the towers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["HistoryPooling", "HistoryTable", "LinearStart", "ModelSettings", "PopularitySettings"]

HistoryPooling = Literal["mean", "sqrt"]
HistoryTable = Literal["own", "item_id"]
LinearStart = Literal["random", "identity"]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class PopularitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One more coordinate that carries log decayed popularity; off by default.

    With a weight above zero the served score is an inner product, cosine + weight x temperature
    x log decayed popularity, and no longer a cosine. A softmax without logQ correction learns how
    much more a user likes an item than everybody does, and the coordinate puts back how much
    everybody does, as of the cut: use it with `training.negatives.correction = "none"`.
    """

    weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Weight of the log decayed popularity in the logit; 0 switches the coordinate off."""
    half_life_h: Annotated[float, msgspec.Meta(gt=0)] = 24.0
    """Hours after which a click counts half."""
    smoothing: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Clicks that every item is taken to have had."""


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Shapes of the user tower and the item tower."""

    vector_dim: Positive = 64
    """Dimension of user and item vectors."""
    id_dim: Positive = 32
    """Dimension of the user and the item ID embeddings."""
    history_dim: Positive = 64
    """Dimension of the history item table, which is frozen within the day."""
    feature_dim: Positive = 8
    """Dimension of each categorical and multi-valued feature's embedding."""
    hidden: tuple[Positive, ...] = (128,)
    """Widths of the hidden layers of both towers."""
    history_length: Annotated[int, msgspec.Meta(ge=0)] = 50
    """Most recent positives of a user that are pooled; 0 switches the history off."""
    history_pooling: HistoryPooling = "sqrt"
    """sqrt: sum of the embeddings over the root of their number, so that a longer history weighs
    more; mean: over their number."""
    history_table: HistoryTable = "own"
    """own: a history is pooled from a table of its own; item_id: from the item ID embeddings, so
    that an item learns from both sides, which then take turns. Needs history_dim = id_dim."""
    skip: bool = True
    """Add a linear map from a tower's input straight to its output."""
    linear_start: LinearStart = "random"
    """What the linear map from a tower's input to its output begins as. identity: as the sum of ID
    embedding and pooled history, features aside. Needs skip or no hidden layers, and id_dim and
    history_dim = vector_dim."""
    init_std: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    """Standard deviation of an embedding's first values."""
    id_init_std: Annotated[float, msgspec.Meta(gt=0)] = 0.02
    """The same for user ID embeddings, most of which see few examples."""
    popularity: PopularitySettings = PopularitySettings()

    def __post_init__(self) -> None:
        """Refuse tables that cannot be one, and an identity between unlike widths."""
        if self.history_table == "item_id" and self.history_dim != self.id_dim:
            raise ValueError(
                f'expected history_dim = id_dim = {self.id_dim} with history_table = "item_id", '
                f"found {self.history_dim}"
            )
        if self.linear_start == "random":
            return
        if self.hidden and not self.skip:
            raise ValueError(
                'expected skip = true or hidden = [] with linear_start = "identity", found no '
                "linear map from input to output"
            )
        widths = {self.id_dim, *([self.history_dim] if self.history_length else [])}
        if widths != {self.vector_dim}:
            raise ValueError(
                f"expected id_dim and history_dim of vector_dim = {self.vector_dim} with "
                f'linear_start = "identity", found {self.id_dim} and {self.history_dim}'
            )
