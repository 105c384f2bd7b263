"""The rows of a delta: what changed since the one before, keyed by ID, never by row number.

Legend: `n` users, `m` items, `D` vector dimension (the popularity coordinate included).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.schema import IdArray
from twotower.errors import CorruptArtifact

__all__ = ["DeltaRows", "merge_by_id", "merge_rows"]

FloatArray = npt.NDArray[np.float32]


class DeltaRows(NamedTuple):
    """ID rows of touched and admitted users, and the items whose vectors changed.

    Both ID arrays are ascending and distinct: a reader searches them by bisection.
    """

    user_ids: IdArray
    """`int64[n]`, or UTF-8 bytes `S[n]`."""
    user_embeddings: FloatArray
    """`[n, id_dim]`, the users' rows; of a user new to the base generation as well."""
    item_ids: IdArray
    """`[m]`, ascending."""
    item_embeddings: FloatArray
    """`[m, id_dim]`."""
    item_vectors: FloatArray
    """`[m, D]`, what is searched in place of the index's vector, or beside it for a new item."""

    @classmethod
    def empty(cls, user_ids: IdArray, item_ids: IdArray, id_dim: int, dim: int) -> DeltaRows:
        """Return no rows, with IDs of the kinds of the two arrays given."""
        none = np.zeros((0, id_dim), np.float32)
        return cls(user_ids[:0], none, item_ids[:0], none, np.zeros((0, dim), np.float32))

    def without_users(self) -> DeltaRows:
        """Return the items' rows alone."""
        return self._replace(user_ids=self.user_ids[:0], user_embeddings=self.user_embeddings[:0])

    def __bool__(self) -> bool:
        return bool(len(self.user_ids) or len(self.item_ids))

    def check(self, where: str) -> DeltaRows:
        """Return these rows if their shapes agree, their IDs ascend and all numbers are finite.

        Raises:
            CorruptArtifact: something else was found; `where` names it.
        """
        num_users, num_items = len(self.user_ids), len(self.item_ids)
        shapes = [array.shape for array in (self.user_embeddings, *self[3:])]
        found = [shape[0] for shape in shapes if len(shape) == 2]
        if found != [num_users, num_items, num_items]:
            raise CorruptArtifact(
                f"expected {where} to hold rows of {num_users} users and {num_items} items, found "
                f"arrays of shapes {shapes}; nothing of it was used"
            )
        for ids in (self.user_ids, self.item_ids):
            if len(ids) > 1 and not np.greater(ids[1:], ids[:-1]).all():
                raise CorruptArtifact(
                    f"expected {where} to hold ascending, distinct IDs, found others; nothing of "
                    "it was used"
                )
        if not all(_are_finite(values) for values in (self.user_embeddings, *self[3:])):
            raise CorruptArtifact(
                f"expected finite numbers in {where}, found others; nothing of it was used"
            )
        return self


def _are_finite(values: FloatArray) -> bool:
    """Return whether all numbers are finite, in one pass where their sum of squares is."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())


def merge_rows(older: DeltaRows, newer: DeltaRows) -> DeltaRows:
    """Return the rows of both, those of `newer` where both name an ID; ascending again."""
    user_ids, (user_embeddings,) = merge_by_id(
        older.user_ids, [older.user_embeddings], newer.user_ids, [newer.user_embeddings]
    )
    item_ids, (item_embeddings, item_vectors) = merge_by_id(
        older.item_ids,
        [older.item_embeddings, older.item_vectors],
        newer.item_ids,
        [newer.item_embeddings, newer.item_vectors],
    )
    return DeltaRows(user_ids, user_embeddings, item_ids, item_embeddings, item_vectors)


def merge_by_id(
    older_ids: IdArray,
    older: Sequence[npt.NDArray[Any]],
    newer_ids: IdArray,
    newer: Sequence[npt.NDArray[Any]],
) -> tuple[IdArray, Sequence[npt.NDArray[Any]]]:
    """Return the IDs of both, ascending, and of each of several arrays the rows that go with them.

    Args:
        older_ids: ascending and distinct.
        older: arrays of a row an ID each.
        newer_ids: ascending and distinct.
        newer: the same arrays for those; they win where both name an ID.
    """
    if len(older_ids) == 0 or len(newer_ids) == 0:
        return (newer_ids, newer) if len(newer_ids) else (older_ids, older)
    ids = np.concatenate([older_ids, newer_ids])
    order = np.argsort(ids, kind="stable")  # which takes one pass over two ascending runs
    in_order = ids[order]
    kept = order[np.append(in_order[1:] != in_order[:-1], True)]  # the last of the same ID
    return ids[kept], [np.concatenate(both)[kept] for both in zip(older, newer, strict=True)]
