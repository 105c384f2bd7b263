"""A small checkpoint with every kind of feature and random parameters, made without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

from twotower.checkpoint import Checkpoint, CheckpointMeta, Trained, Window, feature_shape
from twotower.data.features import FeatureSpec
from twotower.data.ids import Id, IdKind, IdMap
from twotower.data.popularity import DecayedCounts
from twotower.data.settings import FeatureSettings
from twotower.data.user_state import UserState
from twotower.model.frequency import FrequencyEstimator
from twotower.model.settings import HistoryPooling, ModelSettings, PopularitySettings
from twotower.model.towers import TwoTower
from twotower.training.settings import TrainingSettings

__all__ = ["CUT_MS", "external_ids", "rich_items", "tiny_checkpoint"]

CUT_MS = 1_651_420_800_000
_DAY_MS = 86_400_000

_USER_FEATURES = {
    "city": FeatureSettings(kind="categorical"),
    "age": FeatureSettings(kind="numeric"),
    "tags": FeatureSettings(kind="multi", separator="|", max_values=3),
    "joined": FeatureSettings(kind="timestamp", unit="ms"),
}
_ITEM_FEATURES = {"genre": FeatureSettings(kind="categorical")}
_RICH_ITEM_FEATURES = {
    "genre": FeatureSettings(kind="categorical", min_count=2),
    "price": FeatureSettings(kind="numeric", transform="log"),
    "length": FeatureSettings(kind="numeric", transform="quantile", buckets=4),
    "labels": FeatureSettings(kind="multi", separator="|", max_values=3),
    "added": FeatureSettings(kind="timestamp", unit="ms"),
}


def external_ids(kind: IdKind, prefix: str, count: int) -> list[Id]:
    """IDs that differ from positions: integers from 700 downward, or text."""
    return [700 - n if kind == "int" else f"{prefix}-{n:03d}" for n in range(count)]


def _users(count: int) -> pl.DataFrame:
    cities = ["Oslo", "Lima", "Pune", None]
    return pl.DataFrame(
        {
            "city": [cities[n % 4] for n in range(count)],
            "age": [float(20 + n) for n in range(count)],
            "tags": [["a|b", "c", "", "b|c"][n % 4] for n in range(count)],
            "joined": [CUT_MS - n * _DAY_MS for n in range(count)],
        }
    )


def rich_items(count: int) -> pl.DataFrame:
    """Items with a feature of each kind; the genre of the last is too rare to be admitted."""
    genres = [None if n % 7 == 0 else f"genre {n % 5}" for n in range(count)]
    genres[-1] = "rare"
    return pl.DataFrame(
        {
            "genre": genres,
            "price": [None if n % 11 == 0 else n / 10 - 1 for n in range(count)],
            "length": [float(n % 13) for n in range(count)],
            "labels": [["a|b", "c", "", "b|c"][n % 4] for n in range(count)],
            "added": [None if n % 9 == 0 else CUT_MS - n * _DAY_MS for n in range(count)],
        }
    )


def tiny_checkpoint(
    *,
    kind: IdKind = "int",
    num_users: int = 12,
    num_items: int = 60,
    seed: int = 0,
    history_length: int = 4,
    history_pooling: HistoryPooling = "mean",
    with_features: bool = True,
    has_rich_items: bool = False,
    popularity_weight: float = 0.0,
    parent: str | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Users click and see random items; two users and two items have no rows of their own."""
    rng = np.random.default_rng(seed)
    users, items = IdMap(kind), IdMap(kind)
    user_order = users.add(external_ids(kind, "user", num_users))
    items.add(external_ids(kind, "item", num_items))
    users.counts[:], items.counts[:] = 1, 1
    users.counts[-3:-1] = items.counts[-3:-1] = 0
    users.admit(1)
    items.admit(1)
    user_frame = _users(num_users)[np.argsort(user_order)]
    item_frame = pl.DataFrame({"genre": [f"genre {n % 5}" for n in range(num_items)]})
    item_features = _ITEM_FEATURES
    if has_rich_items:
        item_frame, item_features = rich_items(num_items), _RICH_ITEM_FEATURES
    user_spec = FeatureSpec.fit(_USER_FEATURES if with_features else {}, user_frame)
    item_spec = FeatureSpec.fit(item_features if with_features else {}, item_frame)
    popularity = PopularitySettings(weight=popularity_weight)
    small = {"vector_dim": 8, "id_dim": 6, "history_dim": 5, "feature_dim": 3, "hidden": (16,)}
    settings = ModelSettings(
        **{**small, **(sizes or {})},
        history_length=history_length,
        history_pooling=history_pooling,
        id_init_std=0.5,
        init_std=0.5,
        popularity=popularity,
    )
    model = TwoTower.create(
        settings,
        user_shape=feature_shape(user_spec),
        item_shape=feature_shape(item_spec),
        num_user_rows=users.num_rows,
        num_item_rows=items.num_rows,
        generator=torch.Generator().manual_seed(seed),
    )
    counts = DecayedCounts(24.0)
    clicked = rng.integers(0, num_items - 5, 200)
    counts.advance(clicked, rng.integers(CUT_MS - _DAY_MS, CUT_MS, 200), CUT_MS)
    frequency = FrequencyEstimator(0.05, 1e-6)
    frequency.grow(num_items)
    frequency.observe(clicked)
    return Checkpoint(
        meta=CheckpointMeta(
            kind="full",
            window=Window(from_day="2022-05-01", through_day="2022-05-01", cut_ms=CUT_MS),
            trained=Trained(
                rows=9, distinct_event_ids=9, digest="0" * 16, epochs=1, steps=2, loss=1.5,
                seconds=0.5, examples_per_s=18.0, window_rows=9,
            ),
            model=settings,
            training=TrainingSettings(seed=seed),
            parent=parent,
        ),
        model=model,
        optimizer={},
        users=users,
        items=items,
        user_features=user_spec,
        item_features=item_spec,
        user_profiles=user_spec.encode(user_frame, CUT_MS),
        item_profiles=item_spec.encode(item_frame, CUT_MS),
        user_state=_state(rng, num_users, num_items, history_length),
        frequency=frequency,
        popularity=counts,
        corpus=np.arange(num_items, dtype=np.int64)[::-1][3:].copy(),
    )  # fmt: skip


def _state(rng: np.random.Generator, num_users: int, num_items: int, length: int) -> UserState:
    """Each user but the last saw some items and clicked about half of them."""
    users = rng.integers(0, num_users - 1, num_users * 8)
    items = rng.integers(0, num_items, len(users))
    clicked = rng.random(len(users)) < 0.5
    return UserState.empty(num_users).advance(
        users, items, clicked, num_users=num_users, recent_limit=length
    )


def replace_table(checkpoint: Checkpoint, name: str, value: Any) -> None:
    """Overwrite an embedding table's rows in place."""
    checkpoint.model.tables[name].weight[:] = torch.as_tensor(value)
