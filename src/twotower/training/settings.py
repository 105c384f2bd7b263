"""Settings of training: the loss, its negatives, the passes over the data, admission."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = [
    "AdmissionSettings",
    "BaseHistory",
    "DeviceName",
    "FrequencySettings",
    "HardNegativeSettings",
    "IdDropoutSettings",
    "LossName",
    "NegativeSettings",
    "PassOrder",
    "PassSettings",
    "ShownNegativeSettings",
    "TrainingSettings",
    "UserStateSettings",
]

LossName = Literal[
    "pointwise", "cosine_contrastive", "pairwise_hinge", "pairwise_logistic", "listwise"
]
BaseHistory = Literal["before", "others"]
DeviceName = Literal["auto", "cpu", "cuda"]
PassOrder = Literal["shuffled", "by_time", "by_hour"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]


class HardNegativeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Items that a later stage eliminated, or would have; of full updates, off by default."""

    source: Literal["none", "logged", "mined"] = "none"
    """logged: candidates that a stage of the log eliminated; mined: from the parent's ranking."""
    share: Share = 0.01
    """Hard negatives a positive, as a share of its easy ones; also less than one a positive."""
    weight: NonNegativeFloat = 0.1
    """Of their term beside the loss over the easy negatives."""
    stages: tuple[str, ...] = ()
    """logged: the stages whose candidates are used, such as ["prerank", "rank"]; empty for all."""
    mined_from: PositiveInt = 101
    """mined: first rank in the parent generation's ranking of what a user has not seen."""
    mined_to: PositiveInt = 500
    """mined: last rank."""

    def __post_init__(self) -> None:
        """Refuse ranks that hold nothing."""
        if self.mined_from > self.mined_to:
            raise ValueError(
                f"expected mined_from of at most mined_to = {self.mined_to}, found "
                f"{self.mined_from}"
            )


class ShownNegativeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Items that were shown and not clicked: usually a mistake for retrieval, off by default."""

    weight: NonNegativeFloat = 0.0
    """Of their term beside the loss over the easy negatives; 0 switches them off."""
    share: Share = 0.01
    """Such negatives a positive, as a share of its easy ones."""


class NegativeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which negatives a positive is held against, and how their sampling is corrected."""

    in_batch: bool = True
    """Use the other examples' items in the batch."""
    per_positive: NonNegativeInt = 3
    """Negatives a positive for the pointwise and pairwise losses, drawn from those of the batch; 0
    uses all of them, as listwise always does."""
    correction: Literal["mixture", "per_source", "none"] = "mixture"
    """logQ: by the expected count over all sampled sources, by each source alone, or not at all;
    cosine_contrastive is never corrected, because its margin is a similarity."""
    exclude_known: bool = True
    """Never hold a user's other known positives against him: those of his history and of the
    pass."""
    correct_positive: bool = True
    """Whether the positive's own logit is corrected too."""
    hard: HardNegativeSettings = HardNegativeSettings()
    """Items that pre-ranking or ranking eliminated; a term of their own, never corrected."""
    shown: ShownNegativeSettings = ShownNegativeSettings()
    """Impressions without the outcome; a term of their own as well."""


class FrequencySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Streaming estimate of item frequencies (Yi et al. 2019)."""

    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05
    """Weight of the newest gap between two occurrences of an item."""
    floor: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-6
    """Lowest sampling probability; also that of items never seen."""


class IdDropoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Shares of examples on which IDs are hidden, which trains the unknown-ID rows."""

    user: Share = 0.1
    """Share of the examples whose user counts as unknown."""
    item: Share = 0.1
    """Share of the items of a step that count as unknown."""
    profile: Share = 0.5
    """Share of the examples with a hidden user ID whose history and profile are hidden too."""


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When an ID earns an embedding row of its own, and when it loses it again."""

    user_min_occurrences: PositiveInt = 1
    """Examples before a user has a row; until then the unknown-ID row stands in."""
    item_min_occurrences: PositiveInt = 1
    """The same for items."""
    evict_after_days: NonNegativeInt = 0
    """Days without an example after which a full update frees an ID's row; 0 keeps all rows."""


class UserStateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept of a user besides an embedding; by default nothing is dropped."""

    seen_limit: NonNegativeInt = 0
    """Newest seen items kept per user, 0 for all; older ones may be served again."""
    forget_after_days: NonNegativeInt = 0
    """Days without any event after which a full update drops a user's clicks and seen items; 0
    never does."""


class PassSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one kind of pass goes over its examples."""

    epochs: PositiveInt = 1
    """Times that every example is trained; a full update is made for exactly one."""
    batch_size: PositiveInt = 512
    """Examples a step."""
    uniform: NonNegativeInt = 1024
    """Negatives drawn uniformly from the corpus, shared by the batch."""
    dense_learning_rate: PositiveFloat = 1e-3
    """Of Adam, for the dense parameters."""
    table_learning_rate: PositiveFloat = 0.05
    """Of row-wise Adagrad, for the touched rows of every embedding table."""
    order: PassOrder = "shuffled"
    """shuffled: all examples in one random order, as a full update should; by_time: as they
    happened; by_hour: the hours as they happened, shuffled within. The last two are there to
    measure what shuffling is worth; see docs/replay.md."""


class TrainingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Loss, negatives, and the two passes that move every parameter."""

    loss: LossName = "listwise"
    """What a score is held against: a label, one negative, or all negatives at once."""
    temperature: PositiveFloat = 0.1
    """Divides the score before the loss."""
    margin: PositiveFloat = 0.2
    """In units of the score. pairwise_hinge: by how much a positive should lead;
    cosine_contrastive: the similarity that a negative may have."""
    negative_weight: PositiveFloat = 1.0
    """cosine_contrastive: weight of the mean over the negatives beside the positive."""
    accumulator_decay: Share = 1.0
    """Factor on every Adagrad accumulator at the start of a full update; 1 keeps it."""
    save_every_steps: PositiveInt = 500
    """Steps between two saves of a running pass, from which a killed one goes on."""
    seed: NonNegativeInt = 0
    """Of everything random; the same seed, data and threads give the same bits on the CPU."""
    threads: NonNegativeInt = 0
    """Threads of arithmetic, 0 for PyTorch's choice; the last bits of a result depend on it."""
    device: DeviceName = "cpu"
    """Where the base model and full updates do their arithmetic; auto: CUDA where there is a device
    for it, else the CPU. CUDA was run on one kind of GPU only, see docs/performance.md. Draws
    are the same on both, results to rounding, and on CUDA two runs too. Increments, whose batches
    are small, stay on the CPU."""
    base: PassSettings = PassSettings(epochs=3, batch_size=1024)
    """The base model, from the history that has no times."""
    base_history: BaseHistory = "before"
    """What an example of the base model has as the user's history. before: the list up to it, for
    lists in the order of time; others: the rest of the list, for lists without an order."""
    base_shown_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Weight, as weak positives of the base model, of items that the history only shows."""
    full: PassSettings = PassSettings()
    """Every full update."""
    negatives: NegativeSettings = NegativeSettings()
    frequency: FrequencySettings = FrequencySettings()
    id_dropout: IdDropoutSettings = IdDropoutSettings()
    admission: AdmissionSettings = AdmissionSettings()
    user_state: UserStateSettings = UserStateSettings()

    def __post_init__(self) -> None:
        """Refuse a pass without any easy negatives."""
        if not self.negatives.in_batch and 0 in (self.base.uniform, self.full.uniform):
            raise ValueError(
                "expected at least one source of easy negatives, found negatives.in_batch = false "
                "with uniform = 0"
            )
