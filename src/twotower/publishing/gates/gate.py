"""What a gate is, and what it looks at.

Legend: `C` items of the corpus, `n` probe users, `D` without the popularity coordinate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.checkpoint import CheckpointMeta
from twotower.data.features import FeatureSpec
from twotower.publishing.held_out import HeldOutRecall
from twotower.publishing.manifest import GateResult, Manifest
from twotower.publishing.settings import GateSettings

__all__ = ["Gate", "Measured", "Side", "at_least", "at_most", "not_measured"]

FloatArray = npt.NDArray[np.float32]


class Side(NamedTuple):
    """The users or the items, as staged and as the live generation has them."""

    name: str
    features: FeatureSpec
    num_feature_rows: int
    """Rows of the feature table inside the tower."""
    live_features: FeatureSpec | None
    num_moved: int
    """IDs of the live generation that a look-up no longer finds at their position."""
    share_recognised: float | None
    """Of the IDs with a row in both: whose embedding is nearer to their own live one than to
    another ID's. None where there are too few."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What gates look at, all of it read back from the staged files."""

    meta: CheckpointMeta
    """Of the checkpoint that is published."""
    parent: Manifest | None
    """The generation that the training started from, where it is still there."""
    item_vectors: FloatArray
    """`[C, D]`, as they will be served."""
    user_vectors: FloatArray
    """`[n, D]`, of the probe users, as they will be served."""
    trainer_item_vectors: FloatArray
    """`[m, D]`, the trainer's vectors of the first `m` items."""
    trainer_user_vectors: FloatArray
    """`[n, D]`, the trainer's vectors of the probe users."""
    ann_recall_at_100: float
    """Of the built index against exact search, with the vectors as they will be served."""
    search_p50_us: float | None
    """Median of single searches for the probe users; None without users or without a budget."""
    coverage: float
    """Share of the corpus in the lists of the probe users that the parent knows too."""
    live_coverage: float | None
    """The same of the parent, None without one."""
    held_out: HeldOutRecall | str
    """Recall on the held-out user-days, or why there is none."""
    sides: tuple[Side, ...]


class Gate(ABC):
    """One condition on a generation that is about to be published."""

    name: ClassVar[str]

    @classmethod
    def of(cls, settings: GateSettings) -> Gate:
        """Return the gate with the project's bar; a gate without a setting leaves this as it is."""
        return cls()

    @abstractmethod
    def measure(self, measured: Measured) -> GateResult:
        """Return what was found beside the bar."""


def at_most(gate: str, measured: float, bar: float, detail: str = "") -> GateResult:
    """Return the result of a gate that wants no more than `bar`."""
    passed, needs = measured <= bar, f"at most {bar:.4g}"
    return GateResult(
        gate=gate, measured=measured, bar=bar, needs=needs, passed=passed, detail=detail
    )


def at_least(gate: str, measured: float, bar: float, detail: str = "") -> GateResult:
    """Return the result of a gate that wants no less than `bar`."""
    passed, needs = measured >= bar, f"{bar:.4f}"
    return GateResult(
        gate=gate, measured=measured, bar=bar, needs=needs, passed=passed, detail=detail
    )


def not_measured(gate: str, bar: float, why: str) -> GateResult:
    """Return the result of a gate that had too little to judge: it passes, and says so."""
    return GateResult(gate=gate, measured=None, bar=bar, needs="", passed=True, detail=why)
