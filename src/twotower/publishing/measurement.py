"""What the gates look at, taken from the staged files and held against the live generation.

Legend: `C` items of the corpus, `n` probe users, `D` vector dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twotower.checkpoint import Checkpoint
from twotower.data.ids import lookup
from twotower.index import Choice, VectorIndex, open_index
from twotower.metrics import coverage
from twotower.publishing.encoding import Encoder
from twotower.publishing.entities import Entities
from twotower.publishing.gates.gate import Measured, Side
from twotower.publishing.generation import Generation
from twotower.publishing.held_out import HeldOutRecall, Served, list_length, measure_recall
from twotower.publishing.settings import PublishingSettings
from twotower.publishing.trainer_vectors import trainer_item_vectors, trainer_user_vectors

__all__ = ["Built", "measure"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_FEWEST_IDS: Final = 20
_MOST_IDS: Final = 10_000


@dataclass(frozen=True, eq=False)
class Built:
    """What the staged files gave back."""

    encoder: Encoder
    item_vectors: FloatArray
    """`[C, D]`"""
    probe_users: IntArray
    """`[n]`, positions."""
    user_vectors: FloatArray
    """`[n, D]`, of the probe users."""
    index: VectorIndex
    choice: Choice
    ann_recall: float
    search_p50_us: float | None
    """Median of single searches; None where nobody asks, as the bytes of it are never the same."""


def measure(
    checkpoint: Checkpoint, built: Built, parent: Generation | None, settings: PublishingSettings
) -> Measured:
    """Gather what gates look at; the popularity coordinate is no part of a cosine.

    Args:
        checkpoint: that is published.
        built: from its staged files.
        parent: the generation that the training started from, its files verified; None where
            there was none or it is gone.
        settings: sizes of samples.
    """
    dim = checkpoint.meta.model.vector_dim
    sample = checkpoint.corpus[: settings.batch_rows]
    live = None if parent is None else _served(parent)
    ours, theirs = _coverages(checkpoint, built, live, parent)
    return Measured(
        meta=checkpoint.meta,
        parent=parent.manifest if parent else None,
        item_vectors=built.item_vectors[:, :dim],
        user_vectors=built.user_vectors[:, :dim],
        trainer_item_vectors=trainer_item_vectors(checkpoint, sample),
        trainer_user_vectors=trainer_user_vectors(checkpoint, built.probe_users),
        ann_recall_at_100=built.ann_recall,
        search_p50_us=built.search_p50_us,
        coverage=ours,
        live_coverage=theirs,
        held_out=_held_out(checkpoint, built, live),
        sides=_sides(checkpoint, built.encoder, live),
    )


def _served(parent: Generation) -> Served:
    return Served(Encoder.of(parent), open_index(parent.file("index")))


def _held_out(checkpoint: Checkpoint, built: Built, live: Served | None) -> HeldOutRecall | str:
    meta = checkpoint.meta
    if meta.parent is not None and live is None:
        return f"the parent '{meta.parent}' is gone"
    popularity = checkpoint.popularity.at(meta.window.cut_ms)
    candidate = Served(built.encoder, built.index)
    return measure_recall(checkpoint.held_out, candidate, live, popularity, checkpoint.corpus)


def _coverages(
    checkpoint: Checkpoint, built: Built, live: Served | None, parent: Generation | None
) -> tuple[float, float | None]:
    """Return the share of the corpus in the lists of the same users, candidate and parent."""
    num_items, k = len(checkpoint.corpus), list_length(len(checkpoint.corpus))
    if live is None or parent is None:
        return _coverage(built.index, built.user_vectors, num_items, k), None
    is_known = built.probe_users < len(live.encoder.users)
    ours = _coverage(built.index, built.user_vectors[is_known], num_items, k)
    users = live.encoder.user_vectors(built.probe_users[is_known])
    before = parent.manifest.index.num_items
    return ours, _coverage(live.index, users, before, list_length(before))


def _coverage(index: VectorIndex, users: FloatArray, num_items: int, k: int) -> float:
    found = index.search(users, k).ids
    _, ranked = np.unique(found, return_inverse=True)
    return coverage(ranked.reshape(found.shape), num_items, k) if found.size else 0.0


def _sides(checkpoint: Checkpoint, encoder: Encoder, live: Served | None) -> tuple[Side, ...]:
    tables, before = checkpoint.model.tables, None if live is None else live.encoder
    user_rows, item_rows = len(tables["user_feature"]), len(tables["item_feature"])
    if before is None:
        return (
            Side("users", encoder.user_features, user_rows, None, 0, None),
            Side("items", encoder.item_features, item_rows, None, 0, None),
        )
    users, items = _Ids(encoder.users, before.users), _Ids(encoder.items, before.items)
    return (
        Side(
            "users",
            encoder.user_features,
            user_rows,
            before.user_features,
            users.num_moved,
            users.share_recognised(encoder.user_id_embeddings, before.user_id_embeddings),
        ),
        Side(
            "items",
            encoder.item_features,
            item_rows,
            before.item_features,
            items.num_moved,
            items.share_recognised(encoder.item_id_embeddings, before.item_id_embeddings),
        ),
    )


class _Ids:
    """The IDs of the live generation, as the candidate looks them up."""

    def __init__(self, now: Entities, before: Entities) -> None:
        self._now, self._before = now, before
        self._found = lookup(now.ids, now.order, before.ids)

    @property
    def num_moved(self) -> int:
        return int(np.count_nonzero(self._found != np.arange(len(self._found))))

    def share_recognised(self, now: FloatArray, before: FloatArray) -> float | None:
        """Return the share of IDs whose row is nearer to their own row before than to another's.

        Args:
            now: the candidate's embedding rows.
            before: those of the live generation.
        """
        known = np.flatnonzero((self._found >= 0) & (self._before.rows > 0))
        known = known[self._now.rows[self._found[known]] > 0]
        if len(known) < _FEWEST_IDS:
            return None
        sample = np.random.default_rng(0).permutation(known)[:_MOST_IDS]
        ours = now[self._now.rows[self._found[sample]]]
        own = before[self._before.rows[sample]]
        another = np.roll(own, 1, axis=0)
        return float((_cosines(ours, own) >= _cosines(ours, another)).mean())


def _cosines(first: FloatArray, second: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: FloatArray = np.einsum("nd,nd->n", first, second) / np.maximum(lengths, 1e-12)
    return cosines
