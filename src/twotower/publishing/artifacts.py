"""The files of a generation that come straight from a checkpoint: towers, arrays, display.

Their names are those that `Encoder`, `Entities` and `Display` read; see docs/file-formats.md.
Legend: `N` items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.checkpoint import Checkpoint, feature_shape
from twotower.data.ids import Id
from twotower.model.export import export_item_tower, export_user_tower
from twotower.publishing.display import display_arrays, feature_fields
from twotower.publishing.entities import entity_arrays
from twotower.publishing.staging import Staging

__all__ = ["log_popularity", "write_arrays", "write_display", "write_towers"]


def write_towers(staging: Staging, checkpoint: Checkpoint) -> None:
    """Write both towers and the feature specifications that say what they are fed."""
    model, users, items = checkpoint.model, checkpoint.user_features, checkpoint.item_features
    user_tower = export_user_tower(
        model,
        feature_shape(users),
        has_history=checkpoint.meta.model.history_length > 0,
        multi_width=users.multi_width,
    )
    item_tower = export_item_tower(model, feature_shape(items), multi_width=items.multi_width)
    staging.write("user_tower.onnx", user_tower)
    staging.write("item_tower.onnx", item_tower)
    staging.write("user_features.json", users.to_json())
    staging.write("item_features.json", items.to_json())


def write_arrays(staging: Staging, checkpoint: Checkpoint) -> None:
    """Write every array that serving looks something up in."""
    arrays = {
        **_side_arrays(checkpoint),
        **_table_arrays(checkpoint),
        "corpus": checkpoint.corpus,
        "item_frequency": checkpoint.frequency.log_probability(),
        "log_popularity": log_popularity(checkpoint),
    }
    for name, array in arrays.items():
        staging.write_array(f"{name}.npy", array)


def _side_arrays(checkpoint: Checkpoint) -> dict[str, npt.NDArray[Any]]:
    users = entity_arrays(checkpoint.users, checkpoint.user_profiles)
    items = entity_arrays(checkpoint.items, checkpoint.item_profiles)
    state = checkpoint.user_state.arrays()
    return {
        **{f"users/{name}": array for name, array in {**users, **state}.items()},
        **{f"items/{name}": array for name, array in items.items()},
    }


def _table_arrays(checkpoint: Checkpoint) -> dict[str, npt.NDArray[Any]]:
    tables = {
        "user_id_embeddings": "user_id",
        "item_id_embeddings": "item_id",
        "history_embeddings": "history",
    }
    return {name: checkpoint.model.tables[table].weight.numpy() for name, table in tables.items()}


def log_popularity(checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    """Return the log decayed popularity of every item as of the cut: `float32[N]`.

    Items that were never clicked have the logarithm of the smoothing.
    """
    smoothing = checkpoint.meta.model.popularity.smoothing
    every = np.full(len(checkpoint.items), math.log(smoothing), np.float32)
    counted = checkpoint.popularity.log_popularity(checkpoint.meta.window.cut_ms, smoothing)
    every[: len(counted)] = counted
    return every


def write_display(
    staging: Staging, checkpoint: Checkpoint, display: Mapping[Id, Mapping[str, object]]
) -> None:
    """Write the fields to show of every item: those given, or its readable features."""
    fields: list[Mapping[str, object]]
    if display:
        every = checkpoint.items.decode(np.arange(len(checkpoint.items)))
        fields = [display.get(item_id, {}) for item_id in every]
    else:
        fields = [*feature_fields(checkpoint.item_features, checkpoint.item_profiles)]
    for name, array in display_arrays(fields).items():
        staging.write_array(f"items/{name}.npy", array)
