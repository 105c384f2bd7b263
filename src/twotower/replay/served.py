"""What serving answers from at one moment, for whole batches of questions.

The same numbers as `twotower.serving.retriever` uses for one request: the base generation's towers,
ID rows and item vectors, the rows of the deltas over them, each user's clicks so far. A retriever
searches an index for one user; this scores all items for many, exactly.
Legend: `U` users and `I` items of the log, `q` questions, `D` dimension without the popularity
coordinate.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from twotower.data.ids import UNKNOWN_ROW, decode_ids
from twotower.data.schema import BoolArray, IntArray
from twotower.data.user_state import Ragged
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.replay.nights import ReplayedLog
from twotower.replay.stream import Questions

__all__ = ["ServedVectors", "rank_targets"]

FloatArray = npt.NDArray[np.float32]

_NOT_SERVED: Final = np.float32(-1e30)
"""Below every score, and finite: a product with an infinity may leave NaN behind."""


class ServedVectors:
    """A base generation and what the day laid over it, in the numbering of a log."""

    def __init__(self, generation: Generation, log: ReplayedLog) -> None:
        """Take the generation as it is published: no delta, its own corpus and popularity."""
        self.encoder = Encoder.of(generation)
        self._log = log
        encoder = self.encoder
        self.users_there = encoder.users.positions(decode_ids(log.users.ids))
        self.items_there = encoder.items.positions(decode_ids(log.items.ids))
        known = self.users_there >= 0
        rows = np.full(len(known), UNKNOWN_ROW, np.int64)
        rows[known] = encoder.users.rows[self.users_there[known]]
        self._user_embeddings: FloatArray = np.asarray(encoder.user_id_embeddings)[rows]
        vectors = np.asarray(generation.array("item_vectors.npy"))
        self.has_popularity = generation.manifest.scoring.has_popularity
        self.temperature = generation.manifest.scoring.temperature
        dim = vectors.shape[1] - int(self.has_popularity)
        self.item_vectors: FloatArray = np.zeros((len(log.items), dim), np.float32)
        """`[I, D]`"""
        self.popularity: FloatArray = np.zeros(len(log.items), np.float32)
        """`[I]`, what is added to the cosine."""
        self.is_served: BoolArray = np.zeros(len(log.items), np.bool_)
        """`[I]`, what can be returned."""
        corpus = np.asarray(generation.array("corpus.npy"))
        self._lay(log.items.positions(encoder.items.ids[corpus]), vectors)

    def apply(self, rows: DeltaRows, *, new_items: bool) -> None:
        """Lay the rows of a delta over what is served.

        Args:
            rows: sorted by ID.
            new_items: whether items that the base does not know can be returned from now on.
        """
        self._user_embeddings[self._log.users.positions(rows.user_ids)] = rows.user_embeddings
        items = self._log.items.positions(rows.item_ids)
        kept = slice(None) if new_items else self.items_there[items] >= 0
        self._lay(items[kept], rows.item_vectors[kept])

    def meet(self, items: IntArray) -> None:
        """Serve items that nothing was learned of: the unknown-ID row, no features."""
        if not len(items):
            return
        encoder = self.encoder
        unknown = encoder.item_id_embeddings[UNKNOWN_ROW][None]
        nobody = encoder.item_features.missing(1)
        coordinate = encoder.popularity_coordinate(-1)
        vector = encoder.item_vector(unknown, nobody, coordinate)
        self._lay(items, np.repeat(vector, len(items), axis=0))

    def _lay(self, items: IntArray, vectors: FloatArray) -> None:
        dim = self.item_vectors.shape[1]
        self.item_vectors[items] = vectors[:, :dim]
        if self.has_popularity:
            self.popularity[items] = vectors[:, dim]
        self.is_served[items] = True

    def user_vectors(self, asked: Questions, part: IntArray) -> FloatArray:
        """Return the vectors of some questions' users as of each question, `[q, D]`."""
        users = asked.user[part]
        there = self.users_there[users]
        profiles = self.encoder.user_features.missing(len(part))
        known = there >= 0
        stored = self.encoder.users.profiles_at(there[known])
        for values, of_known in zip(profiles, stored, strict=True):
            values[known] = of_known
        recent = asked.recent_of(part)
        clicks = Ragged(self.items_there[recent.values], recent.offsets)
        vectors = self.encoder.user_vectors_of(self._user_embeddings[users], profiles, clicks)
        return vectors[:, : self.item_vectors.shape[1]]

    def ranks(self, asked: Questions, part: IntArray, batch: int = 256) -> IntArray:
        """Return how many items stand before each question's item, `int64[q]`.

        All served items are ranked but those that the user was shown before; equal scores by the
        lower position. An item that is not served is ranked behind all.
        """
        added = np.where(self.is_served, self.popularity, _NOT_SERVED)
        items = np.column_stack([self.item_vectors, added]).T
        ranks = np.empty(len(part), np.int64)
        for start in range(0, len(part), batch):
            rows = part[start : start + batch]
            vectors = self.user_vectors(asked, rows)
            scores = np.column_stack([vectors, np.ones(len(rows), np.float32)]) @ items
            ranks[start : start + batch] = rank_targets(
                scores, asked.item[rows], asked.seen_of(rows)
            )
        return np.where(self.is_served[asked.item[part]], ranks, len(self.is_served))


def rank_targets(scores: FloatArray, targets: IntArray, seen: Ragged) -> IntArray:
    """Return the place of each row's target, from 0.

    Args:
        scores: `[q, I]`; changed.
        targets: `[q]`, one item a row.
        seen: `q` lists of items that are left out; the target is not among them.
    """
    scores[seen.owners(), seen.values] = -np.inf
    ranks = np.empty(len(scores), np.int64)
    for row, target in enumerate(targets.tolist()):
        wanted = scores[row, target]
        ranks[row] = np.count_nonzero(scores[row] > wanted)
        ranks[row] += np.count_nonzero(scores[row, :target] == wanted)
    return ranks
