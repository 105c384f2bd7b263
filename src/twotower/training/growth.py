"""What a lineage learns to know before it trains: new IDs, new feature values, new profiles.

Positions and feature rows are only ever appended, so nothing that was trained moves; embedding
rows of IDs that were not seen for long are freed, and then the rest moves together.
Legend: `N` users or items, `n` events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from twotower.checkpoint import Checkpoint, Turnover
from twotower.data.days import ImportedData
from twotower.data.features import FeatureSpec
from twotower.data.ids import UNKNOWN_ROW, IdMap
from twotower.data.schema import EncodedFeatures, IdArray, IntArray
from twotower.training.settings import AdmissionSettings

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "EntityTables",
    "admit",
    "encode_profiles",
    "evict",
    "forget",
    "learn",
    "refresh_profiles",
]


class EntityTables(NamedTuple):
    """The imported tables of users and items, None where there are none."""

    users: pl.DataFrame | None
    items: pl.DataFrame | None

    @classmethod
    def of(cls, data: ImportedData) -> EntityTables:
        """Read both tables of an import."""
        return cls(data.users(), data.items())


def learn(
    state: Checkpoint, tables: EntityTables, user_ids: IdArray, item_ids: IdArray, as_of_ms: int
) -> tuple[IntArray, IntArray]:
    """Make users, items and their features known; return the positions of the given IDs.

    Args:
        state: changed in place; every known item is in its corpus afterwards.
        tables: users and items with their features.
        user_ids: `[n]`.
        item_ids: `[n]`.
        as_of_ms: moment at which ages are taken.
    """
    _learn_values(state, tables)
    if tables.users is not None:
        state.users.add(tables.users["user_id"].to_list())
    if tables.items is not None:
        state.items.add(tables.items["item_id"].to_list())
    users, items = state.users.add(user_ids), state.items.add(item_ids)
    refresh_profiles(state, tables, as_of_ms)
    state.corpus = np.arange(len(state.items))
    state.frequency.grow(len(state.items))
    return users, items


def _learn_values(state: Checkpoint, tables: EntityTables) -> None:
    """Add the feature values that the tables show for the first time.

    A new value's row starts as a copy of its field's missing row.
    """
    if tables.users is not None:
        known, state.user_features = state.user_features, state.user_features.extend(tables.users)
        _grow_feature_table(state, "user_feature", known, state.user_features)
    if tables.items is not None:
        known, state.item_features = state.item_features, state.item_features.extend(tables.items)
        _grow_feature_table(state, "item_feature", known, state.item_features)


def _grow_feature_table(
    state: Checkpoint, table: str, known: FeatureSpec, extended: FeatureSpec
) -> None:
    state.model.tables[table].grow(extended.missing_rows()[known.num_rows :])


def refresh_profiles(state: Checkpoint, tables: EntityTables, as_of_ms: int) -> None:
    """Encode the features of everybody known, with ages taken at `as_of_ms`."""
    state.user_profiles = encode_profiles(
        state.user_features, state.users, tables.users, "user_id", as_of_ms
    )
    state.item_profiles = encode_profiles(
        state.item_features, state.items, tables.items, "item_id", as_of_ms
    )


def encode_profiles(
    spec: FeatureSpec, ids: IdMap, frame: pl.DataFrame | None, id_column: str, as_of_ms: int
) -> EncodedFeatures:
    """Return the features of every known ID, by position; missing where the table has none.

    Args:
        spec: of the side.
        ids: of the side; every ID of `frame` is known to it.
        frame: one row an ID, or None.
        id_column: name of the ID column in `frame`.
        as_of_ms: moment at which ages are taken.
    """
    profiles = spec.missing(len(ids))
    if frame is None or len(frame) == 0:
        return profiles
    positions = ids.positions(frame[id_column].to_list())
    for values, encoded in zip(profiles, spec.encode(frame, as_of_ms), strict=True):
        values[positions] = encoded
    return profiles


def admit(
    state: Checkpoint, users: IntArray, items: IntArray, day: int, admission: AdmissionSettings
) -> Turnover:
    """Count occurrences and give rows of their own to the IDs that have earned them.

    A new row starts as a copy of the trained unknown-ID row, with an accumulator of zero.

    Args:
        state: changed in place.
        users: `[n]` user positions, one an example.
        items: `[n]` item positions, one an example.
        day: days since 1970, noted as last seen.
        admission: thresholds.
    """
    state.users.observe(users, day)
    state.items.observe(items, day)
    new_users = state.users.admit(admission.user_min_occurrences)
    new_items = state.items.admit(admission.item_min_occurrences)
    copies: Mapping[str, int] = {
        "user_id": len(new_users),
        "item_id": len(new_items),
        "history": len(new_items),
    }
    for table, num_new in copies.items():
        state.model.tables[table].grow(np.full(num_new, UNKNOWN_ROW, np.int64))
    return Turnover(admitted_users=len(new_users), admitted_items=len(new_items))


def evict(state: Checkpoint, day: int, evict_after_days: int) -> Turnover:
    """Free the rows of IDs without an example for `evict_after_days` days before `day`.

    Only full updates call it, after `admit` has noted who was seen: a row that a delta may name
    never disappears within the day. Tables, accumulators and row numbers change together.

    Args:
        state: changed in place; positions, and all that is by position, stay.
        day: days since 1970, the last one trained.
        evict_after_days: 0 evicts nobody.
    """
    if not evict_after_days:
        return Turnover()
    user_rows, num_users = state.users.evict(day - evict_after_days)
    item_rows, num_items = state.items.evict(day - evict_after_days)
    kept = {"user_id": user_rows, "item_id": item_rows, "history": item_rows}
    for table, rows in kept.items():
        state.model.tables[table].keep(rows)
    return Turnover(evicted_users=num_users, evicted_items=num_items)


def forget(state: Checkpoint, users: IntArray, day: int, forget_after_days: int) -> int:
    """Note who was there, and drop the lists of users without an event for long.

    Args:
        state: changed in place; its user state is as of the cut.
        users: `[n]` user positions, one an event of the window, whatever its outcome.
        day: days since 1970, the last one of the window.
        forget_after_days: days before `day` without an event; 0 forgets nobody.

    Returns:
        How many users lost their recent clicks and seen items.
    """
    known = state.last_event_day
    new = np.full(len(state.users) - len(known), day, np.int64)
    state.last_event_day = np.concatenate([known, new])
    state.last_event_day[users] = day
    if not forget_after_days:
        return 0
    is_forgotten = state.last_event_day < day - forget_after_days
    had_any = state.user_state.seen.lengths() + state.user_state.recent.lengths() > 0
    state.user_state = state.user_state.without(is_forgotten)
    return int((is_forgotten & had_any).sum())
