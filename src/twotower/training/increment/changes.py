"""What an incremental update has changed since a mark, as plain arrays, and back again.

What was noted of the stream is kept as the positives themselves and noted again; what was learned
is kept as the rows it made. Offset and rows are one object, and so cannot be stored apart.
Legend: `n` positives, `p` portions in which they were learned, `r` rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from twotower.data.ids import view_ids
from twotower.data.schema import IdArray, IntArray
from twotower.model.embedding_table import EmbeddingTable
from twotower.training.increment.positives import Positives

__all__ = ["Changes", "Reached", "TableRows", "decode_changes", "encode_changes", "merge_changes"]

Arrays = dict[str, npt.NDArray[Any]]


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """How far an incremental update has come."""

    offset: int
    """Of the next joined example."""
    newest_event_time_ms: int
    published_offset: int
    """The last delta ends here: the next one begins here."""
    first_losses: list[float]
    newest_losses: list[float]
    counts: dict[str, int]
    """Of what was learned since the last delta."""


class TableRows(NamedTuple):
    """Rows of one ID table."""

    rows: IntArray
    """`int64[r]`, ascending."""
    weight: npt.NDArray[np.float32]
    accumulator: npt.NDArray[np.float32]
    unpublished: IntArray
    """All rows that the next delta has to hold, whether they are among `rows` or not."""

    @classmethod
    def of(cls, table: EmbeddingTable, rows: IntArray, unpublished: IntArray) -> TableRows:
        """Copy some rows of a table."""
        chosen = torch.from_numpy(rows)
        weight, accumulator = table.weight[chosen], table.accumulator[chosen]
        return cls(rows, weight.numpy(), accumulator.numpy(), unpublished)

    def put(self, table: EmbeddingTable) -> None:
        """Overwrite these rows of a table."""
        chosen = torch.from_numpy(self.rows)
        table.weight[chosen] = torch.from_numpy(self.weight)
        table.accumulator[chosen] = torch.from_numpy(self.accumulator)

    def followed_by(self, newer: TableRows) -> TableRows:
        """Return the rows of both, those of `newer` where both have them."""
        stays = ~np.isin(self.rows, newer.rows)
        rows = np.concatenate([self.rows[stays], newer.rows])
        order = np.argsort(rows, kind="stable")
        weight = np.concatenate([self.weight[stays], newer.weight])[order]
        accumulator = np.concatenate([self.accumulator[stays], newer.accumulator])[order]
        return TableRows(rows[order], weight, accumulator, newer.unpublished)


class Changes(NamedTuple):
    """What happened between two marks."""

    reached: Reached
    positives: Positives
    portions: IntArray
    """`int64[p]`, positives of each portion."""
    users: TableRows
    items: TableRows


def merge_changes(parts: Sequence[Changes]) -> Changes:
    """Return consecutive changes as one."""
    users, items = parts[0].users, parts[0].items
    for part in parts[1:]:
        users, items = users.followed_by(part.users), items.followed_by(part.items)
    return Changes(
        parts[-1].reached,
        Positives.joined([part.positives for part in parts]),
        np.concatenate([part.portions for part in parts]),
        users,
        items,
    )


def encode_changes(changes: Changes) -> Arrays:
    """Return the changes as named arrays; text IDs become `uint8[n, width]`."""
    positives = changes.positives._replace(
        user_id=_stored(changes.positives.user_id), item_id=_stored(changes.positives.item_id)
    )
    arrays: Arrays = {
        "reached": np.frombuffer(msgspec.json.encode(changes.reached), np.uint8),
        "portions": changes.portions,
    }
    for part, values in (
        ("positives", positives._asdict()),
        ("users", changes.users._asdict()),
        ("items", changes.items._asdict()),
    ):
        arrays.update({f"{part}.{name}": array for name, array in values.items()})
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def decode_changes(arrays: Mapping[str, npt.NDArray[Any]]) -> Changes:
    """Return the changes that `encode_changes` took apart."""

    def part(name: str) -> Arrays:
        start = f"{name}."
        found = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        return {k: np.array(v) for k, v in found.items()}

    positives = Positives(**part("positives"))
    return Changes(
        msgspec.json.decode(arrays["reached"].tobytes(), type=Reached),
        positives._replace(
            user_id=view_ids(positives.user_id), item_id=view_ids(positives.item_id)
        ),
        arrays["portions"],
        TableRows(**part("users")),
        TableRows(**part("items")),
    )


def _stored(ids: IdArray) -> IdArray:
    if ids.dtype.kind != "S":
        return ids
    return np.ascontiguousarray(ids).view(np.uint8).reshape(len(ids), ids.dtype.itemsize)
