"""The measured conditions that can refuse an activation.

A gate is one class with a name and a measurement; adding one is one class here and one line in
`default_gates`. A refused generation is kept, whole, so that it can be looked at; only an
activation with `--force`, which the audit names, makes it live. Numbers that are not finite are
the exception: of these nothing is published, since no index can hold them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from twotower.errors import GateRefused
from twotower.publishing.manifest import GateResult, Manifest, refusal
from twotower.publishing.settings import GateSettings

__all__ = [
    "AnnRecall",
    "CorpusKept",
    "Gate",
    "Measured",
    "NotCollapsed",
    "TowersAgree",
    "UnitLength",
    "at_least",
    "at_most",
    "check_finite",
    "default_gates",
    "mean_pairwise_cosine",
]

FloatArray = npt.NDArray[np.float32]

_MAX_LENGTH_ERROR = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What gates look at. `C` items of the corpus, `n` probe users, `D` without popularity."""

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
    parent: Manifest | None
    """The generation that the training started from, where it is still there."""


class Gate(ABC):
    """One condition on a generation that is about to be published."""

    name: ClassVar[str]

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


class UnitLength(Gate):
    """Every vector has length 1: else the inner product is no cosine and long items win."""

    name = "unit_length"

    def measure(self, measured: Measured) -> GateResult:
        """Return the largest difference of a length from 1."""
        vectors = (measured.item_vectors, measured.user_vectors)
        errors = [np.abs(np.linalg.norm(v, axis=1) - 1).max(initial=0.0) for v in vectors]
        return at_most(self.name, float(max(errors)), _MAX_LENGTH_ERROR)


class NotCollapsed(Gate):
    """Vectors of different items, and of different users, point in different directions."""

    name = "not_collapsed"

    def __init__(self, max_mean_cosine: float, max_mean_user_cosine: float) -> None:
        self._item_bar = max_mean_cosine
        self._user_bar = max_mean_user_cosine

    def measure(self, measured: Measured) -> GateResult:
        """Return the mean pairwise cosine of the side that is nearer to its bar."""
        items = mean_pairwise_cosine(measured.item_vectors)
        users = mean_pairwise_cosine(measured.user_vectors)
        detail = f"items {items:.4f}, users {users:.4f}"
        if users - self._user_bar > items - self._item_bar:
            return at_most(self.name, users, self._user_bar, detail)
        return at_most(self.name, items, self._item_bar, detail)


class AnnRecall(Gate):
    """The index finds what an exact search finds."""

    name = "ann_recall_at_100"

    def __init__(self, bar: float) -> None:
        self._bar = bar

    def measure(self, measured: Measured) -> GateResult:
        """Return the recall of the index on the probe users."""
        return at_least(self.name, measured.ann_recall_at_100, self._bar)


class TowersAgree(Gate):
    """What is served is what was trained: both sides' vectors, from torch and from ONNX."""

    name = "towers_agree"

    def __init__(self, max_difference: float) -> None:
        self._bar = max_difference

    def measure(self, measured: Measured) -> GateResult:
        """Return the largest difference of a coordinate."""
        pairs = (
            (measured.user_vectors, measured.trainer_user_vectors),
            (measured.item_vectors, measured.trainer_item_vectors),
        )
        found = [
            float(np.abs(served[: len(trained)] - trained).max(initial=0.0))
            for served, trained in pairs
        ]
        return at_most(
            self.name, max(found), self._bar, f"users {found[0]:.2g}, items {found[1]:.2g}"
        )


class CorpusKept(Gate):
    """The corpus did not shrink by more than a share of the parent's."""

    name = "corpus_kept"

    def __init__(self, max_loss: float) -> None:
        self._bar = max_loss

    def measure(self, measured: Measured) -> GateResult:
        """Return the share of the parent's corpus that is gone, 0 without a parent."""
        now = len(measured.item_vectors)
        before = measured.parent.counts.get("corpus", 0) if measured.parent else 0
        lost = max(0.0, 1 - now / before) if before else 0.0
        return at_most(self.name, lost, self._bar, f"{before:,} items before, {now:,} now")


def default_gates(settings: GateSettings) -> list[Gate]:
    """Return every gate that a generation has to pass, in the order they are shown."""
    return [
        UnitLength(),
        NotCollapsed(settings.max_mean_cosine, settings.max_mean_user_cosine),
        AnnRecall(settings.ann_recall_at_100),
        TowersAgree(settings.max_tower_difference),
        CorpusKept(settings.max_corpus_loss),
    ]


def check_finite(arrays: Mapping[str, npt.NDArray[Any]]) -> GateResult:
    """Count NaN and infinite values in all floating-point arrays.

    Raises:
        GateRefused: there is one; nothing may be published.
    """
    counts = {
        name: int(np.count_nonzero(~np.isfinite(array)))
        for name, array in arrays.items()
        if array.dtype.kind == "f"
    }
    result = at_most("finite", float(sum(counts.values())), 0.0)
    if not result.passed:
        worst = max(counts, key=lambda name: counts[name])
        raise GateRefused(
            f"{refusal([result])} values that are NaN or infinite, most of them in '{worst}'; "
            "nothing was published; the live generation is unchanged"
        )
    return result


def mean_pairwise_cosine(vectors: FloatArray) -> float:
    """Return the mean cosine of two different rows, 0 for fewer than two.

    With unit rows, `|sum of rows|^2` is the sum of all pairwise cosines and of one 1 a row, so no
    `C x C` matrix is needed.
    """
    num_rows = len(vectors)
    if num_rows < 2:
        return 0.0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float64)
    unit = vectors / np.maximum(lengths, 1e-12)
    total, own = float(np.square(unit.sum(axis=0)).sum()), float(np.square(unit).sum())
    return (total - own) / (num_rows * (num_rows - 1))
