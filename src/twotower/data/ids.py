"""External IDs, their positions and their embedding rows: three numbers that are never mixed up.

An *ID* is what the log calls a user or an item, an integer or a string. Its *position* is its
place in the append-only list of everything the lineage ever heard of; profiles, histories and
seen lists are arrays over positions. Its *row* is its row in an embedding table; row 0 is the
trained unknown-ID row, shared by all that is not admitted. Legend: `N` known IDs, `n` asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from twotower.errors import DataError

__all__ = [
    "UNKNOWN_ROW",
    "Id",
    "IdKind",
    "IdMap",
    "as_id_array",
    "decode_ids",
    "lookup",
    "lookup_one",
    "view_ids",
]

Id = int | str
IdKind = Literal["int", "str"]
IntArray = npt.NDArray[np.int64]

UNKNOWN_ROW: Final = 0


def as_id_array(
    ids: Iterable[Id] | npt.NDArray[np.generic], kind: IdKind
) -> npt.NDArray[np.generic]:
    """Return `ids` as the array form of their kind: `int64[n]`, or UTF-8 bytes `S[n]`.

    Raises:
        DataError: an ID is not of the kind, or a string holds a NUL or is empty.
    """
    if kind == "int":
        return _as_integers(ids)
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "S":
        return ids
    values = [str(value) for value in ids]
    for value in values:
        if not value or "\0" in value:
            raise DataError(f"expected a non-empty ID without NUL characters, found {value!r}")
    encoded = [value.encode() for value in values]
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=1)}")


def _as_integers(ids: Iterable[Id] | npt.NDArray[np.generic]) -> IntArray:
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "i":
        return ids.astype(np.int64, copy=False)
    values = [
        _as_integer(value) for value in (ids.tolist() if isinstance(ids, np.ndarray) else ids)
    ]
    return np.array(values, dtype=np.int64)


def _as_integer(value: object) -> int:
    """Return a whole number, or the text of one, that fits 64 bits with a sign."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    try:
        found = int(value) if is_whole or isinstance(value, str) else None  # type: ignore[call-overload]
    except ValueError:
        found = None
    if found is None or not -(2**63) <= found < 2**63:
        raise DataError(f"expected integer IDs of at most 64 bits with a sign, found {value!r}")
    return int(found)


def decode_ids(ids: npt.NDArray[np.generic]) -> list[Id]:
    """Return the IDs of an array as Python integers or strings."""
    if ids.dtype.kind == "S":
        return [value.decode() for value in ids.tolist()]
    decoded: list[Id] = ids.tolist()
    return decoded


def lookup(
    ids: npt.NDArray[np.generic],
    order: npt.NDArray[np.integer] | None,
    wanted: npt.NDArray[np.generic],
) -> IntArray:
    """Return the position of each wanted ID, -1 where it is unknown: `int64[n]`.

    Args:
        ids: `[N]`, in position order.
        order: `[N]`, the positions in ascending order of their IDs; None where `ids` ascend.
        wanted: `[n]`, of the same kind; texts may be longer.
    """
    if len(ids) == 0 or len(wanted) == 0:
        return np.full(len(wanted), -1, np.int64)
    # numpy would copy all of `ids` to compare them with longer texts; those equal none anyway
    narrow = wanted if wanted.dtype == ids.dtype else wanted.astype(ids.dtype)
    place = np.minimum(np.searchsorted(ids, narrow, sorter=order), len(ids) - 1)
    found = np.asarray(place if order is None else order[place], dtype=np.int64)
    return np.where(ids[found] == wanted, found, -1)


def lookup_one(
    ids: npt.NDArray[np.generic],
    order: npt.NDArray[np.integer] | None,
    wanted: npt.NDArray[np.generic],
) -> int:
    """Return what `lookup` returns for the one ID that `wanted` has, several times as fast."""
    narrow = wanted if wanted.dtype == ids.dtype else wanted.astype(ids.dtype)
    place = int(ids.searchsorted(narrow, sorter=order)[0])
    if place == len(ids):
        return -1
    found = place if order is None else int(order[place])
    return found if ids[found] == wanted[0] else -1


class IdMap:
    """Append-only map from external IDs to positions, and from positions to embedding rows.

    Collisionless: two IDs never share a position, and never a row other than the unknown-ID row.
    Not safe for concurrent writers.
    """

    def __init__(self, kind: IdKind) -> None:
        self.kind: IdKind = kind
        self.ids = as_id_array([], kind)
        self.rows = np.zeros(0, np.int64)
        self.counts = np.zeros(0, np.int64)
        self.last_seen_day = np.zeros(0, np.int64)
        self.num_rows = 1
        self._order = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def order(self) -> IntArray:
        """The positions in ascending order of their IDs, `int64[N]`."""
        return self._order

    def positions(self, ids: Iterable[Id] | npt.NDArray[np.generic]) -> IntArray:
        """Return the position of each ID, -1 where it is unknown: `int64[n]`."""
        return lookup(self.ids, self._order, as_id_array(ids, self.kind))

    def add(self, ids: Iterable[Id] | npt.NDArray[np.generic]) -> IntArray:
        """Make every ID known and return their positions, `int64[n]`; new ones have row 0.

        New IDs get their positions in ascending order of the ID, whatever order they came in.
        """
        # each ID is searched once, and in order, which touches the same memory again and again
        distinct, inverse = np.unique(as_id_array(ids, self.kind), return_inverse=True)
        positions = lookup(self.ids, self._order, distinct)
        is_new = positions < 0
        new = distinct[is_new]
        if len(new):
            positions[is_new] = np.arange(len(self), len(self) + len(new))
            self.ids = np.concatenate([self.ids, new])
            self._order = np.argsort(self.ids, kind="stable")
            empty = np.zeros(len(new), np.int64)
            self.rows = np.concatenate([self.rows, empty])
            self.counts = np.concatenate([self.counts, empty])
            self.last_seen_day = np.concatenate([self.last_seen_day, empty])
        found: IntArray = positions[inverse]
        return found

    def observe(self, positions: IntArray, day: int) -> None:
        """Count occurrences at `positions` and note `day` (days since 1970) as their last."""
        np.add.at(self.counts, positions, 1)
        np.maximum.at(self.last_seen_day, positions, day)

    def admit(self, min_occurrences: int) -> IntArray:
        """Give a row of its own to every ID counted often enough; return the new rows.

        The caller grows the embedding table to `num_rows` and starts those rows as copies of the
        unknown-ID row.
        """
        frequent = self.counts >= max(1, min_occurrences)
        newly = np.flatnonzero((self.rows == UNKNOWN_ROW) & frequent)
        rows = np.arange(self.num_rows, self.num_rows + len(newly), dtype=np.int64)
        self.rows[newly] = rows
        self.num_rows += len(newly)
        return rows

    def evict(self, before_day: int) -> tuple[IntArray, int]:
        """Take the rows of IDs last seen before `before_day`, and close the gaps they leave.

        The IDs stay known and keep their positions; they share the unknown-ID row again and are
        counted anew. The other rows move together, in their order.

        Returns:
            The rows that stay, in their new order, row 0 first: `int64[num_rows]`, for the caller
            to pick from the embedding tables; and the number of IDs that lost theirs.
        """
        evicted = (self.rows != UNKNOWN_ROW) & (self.last_seen_day < before_day)
        gone = self.rows[evicted]
        self.rows[evicted] = UNKNOWN_ROW
        self.counts[evicted] = 0
        kept = np.delete(np.arange(self.num_rows, dtype=np.int64), gone)
        renumbered = np.zeros(self.num_rows, np.int64)
        renumbered[kept] = np.arange(len(kept))
        self.rows = renumbered[self.rows]
        self.num_rows = len(kept)
        return kept, len(gone)

    def decode(self, positions: IntArray | Sequence[int]) -> list[Id]:
        """Return the external IDs at `positions`."""
        return decode_ids(self.ids[np.asarray(positions, dtype=np.int64)])

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the whole state as named plain arrays; string IDs become `uint8[N, width]`."""
        ids = self.ids
        if ids.dtype.kind == "S":
            ids = ids.view(np.uint8).reshape(len(ids), ids.dtype.itemsize)
        return {
            "ids": ids,
            "rows": self.rows,
            "counts": self.counts,
            "last_seen_day": self.last_seen_day,
            "num_rows": np.array([self.num_rows]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> IdMap:
        """Rebuild the map that `arrays` came from."""
        ids = arrays["ids"]
        created = cls("str" if ids.ndim == 2 else "int")
        created.ids = view_ids(ids)
        created.rows = arrays["rows"].astype(np.int64)
        created.counts = arrays["counts"].astype(np.int64)
        created.last_seen_day = arrays["last_seen_day"].astype(np.int64)
        created.num_rows = int(arrays["num_rows"][0])
        created._order = np.argsort(created.ids, kind="stable")
        return created


def view_ids(ids: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return stored IDs, `int64[N]` or `uint8[N, width]`, as an array that can be searched."""
    if ids.ndim == 1:
        return ids
    return np.ascontiguousarray(ids).view(f"S{ids.shape[1]}").reshape(len(ids))
