"""What is different between two generations: windows, counts, figures, rows, and what users get.

Rows are compared by ID, never by row number, and lists by the IDs of their items: two lineages
number theirs differently. Legend: `n` probe users, `k` items of a list, `R` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.ids import UNKNOWN_ROW
from twotower.index import open_index
from twotower.publishing.encoding import Encoder
from twotower.publishing.entities import Entities
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import Manifest

__all__ = ["Difference", "Figure", "ListOverlap", "TableChange", "compare"]

IntArray = npt.NDArray[np.int64]

_PROBE_SEED: Final = 0
_TABLES: Final = (
    ("user_id_embeddings", "users"),
    ("item_id_embeddings", "items"),
    ("history_embeddings", "items"),
)


class Figure(msgspec.Struct, frozen=True):
    """One number of both; None where a generation has none of that name."""

    name: str
    first: float | None
    second: float | None


class TableChange(msgspec.Struct, frozen=True):
    """What became of the rows of one embedding table."""

    table: str
    common_rows: int
    """Of IDs that have a row of their own in both."""
    changed_share: float
    """Share of these that hold another number anywhere."""
    mean_shift: float
    """Mean length of the difference of a common row, relative to the row's length in the first."""
    only_first: int
    only_second: int


class ListOverlap(msgspec.Struct, frozen=True):
    """How alike the lists are that the same users get, each without what the user has seen."""

    k: int
    num_users: int
    mean: float
    """Mean share of the `k` items that both lists hold."""
    lowest_decile: float
    """One user in ten keeps no more than this share."""
    same_lists: float
    """Share of the users whose lists hold the same items."""


class Difference(msgspec.Struct, frozen=True):
    """Two generations side by side."""

    first: Manifest
    second: Manifest
    relation: str
    figures: list[Figure]
    gates: list[Figure]
    tables: list[TableChange]
    overlap: ListOverlap | None
    """None where they know no common user."""


def compare(
    first: Generation, second: Generation, *, k: int = 20, num_users: int = 1000
) -> Difference:
    """Return what is different; both generations were verified.

    Args:
        first: Usually the older one.
        second: The other.
        k: Length of the lists that are compared.
        num_users: Probe users: a fixed sample of those that both know.
    """
    encoders = Encoder.of(first), Encoder.of(second)
    return Difference(
        first=msgspec.structs.replace(first.manifest, files={}),
        second=msgspec.structs.replace(second.manifest, files={}),
        relation=_relation(first.manifest, second.manifest),
        figures=_paired(_figures(first.manifest), _figures(second.manifest)),
        gates=_paired(_gates(first.manifest), _gates(second.manifest)),
        tables=[_table_change(first, second, *encoders, *table) for table in _TABLES],
        overlap=_overlap(first, second, *encoders, k, num_users),
    )


def _relation(first: Manifest, second: Manifest) -> str:
    if second.parent == first.name:
        return f"{second.name} was trained from {first.name}"
    if first.parent == second.name:
        return f"{first.name} was trained from {second.name}"
    if first.parent is not None and first.parent == second.parent:
        return f"both were trained from {first.parent}"
    return "neither was trained from the other"


def _figures(manifest: Manifest) -> Mapping[str, float | None]:
    trained, index = manifest.trained, manifest.index
    figures: dict[str, float | None] = {
        "trained events": trained.rows,
        "epochs": trained.epochs,
        "loss": trained.loss,
        "training seconds": trained.seconds,
        **manifest.counts,
        "vector dimensions": manifest.vector_dim,
        "ANN recall@100": index.ann_recall_at_100,
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        **manifest.metrics,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _gates(manifest: Manifest) -> dict[str, float | None]:
    return {r.gate: r.measured for r in manifest.gates if r.measured is not None}


def _paired(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> list[Figure]:
    names = [*first, *(name for name in second if name not in first)]
    return [Figure(name, first.get(name), second.get(name)) for name in names]


def _common(first: Entities, second: Entities) -> tuple[IntArray, IntArray]:
    """Return the positions of the IDs that both know, in each: two `int64[m]`."""
    if first.kind != second.kind:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    width = max(first.ids.dtype.itemsize, second.ids.dtype.itemsize)
    kind = "int64" if first.kind == "int" else f"S{width}"
    ids = first.ids.astype(kind), second.ids.astype(kind)
    _, in_first, in_second = np.intersect1d(*ids, assume_unique=True, return_indices=True)
    return in_first.astype(np.int64), in_second.astype(np.int64)


def _table_change(
    first: Generation,
    second: Generation,
    encoder: Encoder,
    other: Encoder,
    table: str,
    side: str,
) -> TableChange:
    entities: Entities = getattr(encoder, side)
    others: Entities = getattr(other, side)
    in_first, in_second = _common(entities, others)
    rows, other_rows = entities.rows[in_first], others.rows[in_second]
    own = (rows != UNKNOWN_ROW) & (other_rows != UNKNOWN_ROW)
    before = first.array(f"{table}.npy")[rows[own]]
    after = second.array(f"{table}.npy")[other_rows[own]]
    changed, shift = _changes(before, after)
    admitted = [int(np.count_nonzero(side.rows != UNKNOWN_ROW)) for side in (entities, others)]
    common = int(own.sum())
    return TableChange(table, common, changed, shift, admitted[0] - common, admitted[1] - common)


def _changes(
    before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """Return the share of rows that changed, and by how much of their length on average."""
    if not len(before):
        return 0.0, 0.0
    if before.shape[1:] != after.shape[1:]:
        return 1.0, float("nan")
    moved = np.linalg.norm(after - before, axis=1)
    length = np.maximum(np.linalg.norm(before, axis=1), 1e-12)
    return float((before != after).any(axis=1).mean()), float((moved / length).mean())


def _overlap(
    first: Generation,
    second: Generation,
    encoder: Encoder,
    other: Encoder,
    k: int,
    num_users: int,
) -> ListOverlap | None:
    in_first, in_second = _common(encoder.users, other.users)
    if not len(in_first):
        return None
    chosen = np.random.default_rng(_PROBE_SEED).permutation(len(in_first))[:num_users]
    items_in_first, items_in_second = _common(encoder.items, other.items)
    lists = _lists(first, encoder, in_first[chosen], k)
    others = _lists(second, other, in_second[chosen], k)
    # Items of the second are named by their position in the first; those only it knows by others.
    translated = np.arange(len(other.items), dtype=np.int64) + len(encoder.items)
    translated[items_in_second] = items_in_first
    others = np.where(others < 0, -1, translated[others])
    in_both = (lists[:, :, None] == others[:, None, :]) & (lists >= 0)[:, :, None]
    longest = np.maximum((lists >= 0).sum(1), (others >= 0).sum(1))
    shares = in_both.any(2).sum(1) / np.maximum(longest, 1)
    return ListOverlap(
        k=k,
        num_users=len(chosen),
        mean=float(shares.mean()),
        lowest_decile=float(np.quantile(shares, 0.1)),
        same_lists=float((shares == 1).mean()),
    )


def _lists(generation: Generation, encoder: Encoder, users: IntArray, k: int) -> IntArray:
    """Return each user's list as item positions, `int64[n, k]`, -1 where it ends."""
    index = open_index(generation.file("index"))
    seen = [encoder.seen.list_at(int(user)) for user in users]
    return index.search(encoder.user_vectors(users), k, exclude=seen).ids
