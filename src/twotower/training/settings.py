"""Settings of training: the loss, its negatives, the optimisers, admission."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = [
    "AdmissionSettings",
    "BaseSettings",
    "FrequencySettings",
    "IdDropoutSettings",
    "LossName",
    "NegativeSettings",
    "TrainingSettings",
]

LossName = Literal["pointwise", "pairwise_hinge", "pairwise_logistic", "listwise"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]


class NegativeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which negatives a positive is held against, and how their sampling is corrected."""

    in_batch: bool = True
    """Use the other examples' items in the batch."""
    uniform: NonNegativeInt = 512
    """Items drawn uniformly from the corpus, shared by the batch."""
    per_positive: PositiveInt = 3
    """Negatives a positive for the pointwise and pairwise losses; listwise uses all."""
    correction: Literal["mixture", "per_source", "none"] = "mixture"
    """logQ: by the expected count over all sampled sources, by each source alone, or not at all."""
    correct_positive: bool = True
    """Whether the positive's own logit is corrected too."""


class FrequencySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Streaming estimate of item frequencies (Yi et al. 2019)."""

    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05
    """Weight of the newest gap between two occurrences of an item."""
    floor: PositiveFloat = 1e-6
    """Lowest sampling probability; also that of items never seen."""


class IdDropoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Shares of examples on which IDs are hidden, which trains the unknown-ID rows."""

    user: Share = 0.1
    item: Share = 0.1
    profile: Share = 0.5
    """Share of the examples with a hidden user ID whose history and profile are hidden too."""


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often an ID must have occurred before it earns a row of its own."""

    user_min_occurrences: PositiveInt = 1
    item_min_occurrences: PositiveInt = 1


class BaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base model, trained once on the history that has no times."""

    epochs: PositiveInt = 3
    batch_size: PositiveInt = 1024
    uniform: NonNegativeInt = 1024


class TrainingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One full update: loss, negatives, optimisers."""

    loss: LossName = "listwise"
    temperature: PositiveFloat = 0.1
    """Divides the score before the loss."""
    margin: PositiveFloat = 0.2
    """Of the pairwise hinge, in units of the score."""
    batch_size: PositiveInt = 256
    dense_learning_rate: PositiveFloat = 1e-3
    """Adam, for the dense parameters."""
    table_learning_rate: PositiveFloat = 0.05
    """Row-wise Adagrad, for touched rows of every embedding table."""
    accumulator_decay: Share = 1.0
    """Factor on every Adagrad accumulator at the start of a full update; 1 keeps it."""
    seed: NonNegativeInt = 0
    threads: NonNegativeInt = 0
    """Threads of arithmetic, 0 for PyTorch's choice; the last bits of a result depend on it."""
    negatives: NegativeSettings = NegativeSettings()
    frequency: FrequencySettings = FrequencySettings()
    id_dropout: IdDropoutSettings = IdDropoutSettings()
    admission: AdmissionSettings = AdmissionSettings()
    base: BaseSettings = BaseSettings()
