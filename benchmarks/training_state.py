"""The synthetic task as a checkpoint and examples of this package, ready for its own passes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

import training_workload as workload
from twotower.checkpoint import Checkpoint, CheckpointMeta, Trained, Window, feature_shape
from twotower.data.examples import Examples
from twotower.data.features import EncodedFeatures, FeatureSpec
from twotower.data.ids import IdMap
from twotower.data.popularity import DecayedCounts
from twotower.data.settings import FeatureSettings
from twotower.data.user_state import Ragged, UserState
from twotower.model.frequency import FrequencyEstimator
from twotower.model.settings import ModelSettings
from twotower.model.towers import TwoTower
from twotower.training.settings import (
    IdDropoutSettings,
    NegativeSettings,
    PassSettings,
    TrainingSettings,
)

__all__ = ["examples_of", "make_state", "training_settings"]


def training_settings(threads: int, *, batch: int = workload.BATCH) -> TrainingSettings:
    """Return the settings of the task: listwise, in-batch negatives alone, logQ, no dropout."""
    schedule = PassSettings(batch_size=batch, uniform=0, table_learning_rate=0.02)
    return TrainingSettings(
        loss="listwise",
        temperature=workload.TEMPERATURE,
        threads=threads,
        full=schedule,
        negatives=NegativeSettings(in_batch=True, correction="mixture"),
        id_dropout=IdDropoutSettings(user=0.0, item=0.0, profile=0.0),
    )


def make_state(task: workload.Task, training: TrainingSettings) -> Checkpoint:
    """Return a checkpoint of random parameters in which every user and item has a row."""
    users, items = _admit_all(len(task.user_features)), _admit_all(workload.NUM_ITEMS)
    user_spec, user_profiles = _encode(task.user_features, workload.USER_CARDINALITIES)
    item_spec, item_profiles = _encode(task.item_features, workload.ITEM_CARDINALITIES)
    settings = ModelSettings(
        vector_dim=workload.VECTOR_DIM,
        id_dim=workload.ID_DIM,
        feature_dim=workload.FEATURE_DIM,
        hidden=(workload.HIDDEN,),
        history_length=0,
        history_dim=1,
        skip=False,
        id_init_std=0.05,
        init_std=0.05,
    )
    model = TwoTower.create(
        settings,
        user_shape=feature_shape(user_spec),
        item_shape=feature_shape(item_spec),
        num_user_rows=users.num_rows,
        num_item_rows=items.num_rows,
        generator=torch.Generator().manual_seed(0),
    )
    frequency = FrequencyEstimator(0.05, 1e-6)
    frequency.grow(workload.NUM_ITEMS)
    trained = Trained(
        rows=0, distinct_event_ids=0, digest="0" * 16, epochs=1, steps=0, loss=0.0, seconds=0.0,
        examples_per_s=0.0,
    )  # fmt: skip
    return Checkpoint(
        meta=CheckpointMeta(
            kind="full",
            window=Window(from_day=None, through_day=None, cut_ms=0),
            trained=trained,
            model=settings,
            training=training,
        ),
        model=model,
        optimizer={},
        users=users,
        items=items,
        user_features=user_spec,
        item_features=item_spec,
        user_profiles=user_profiles,
        item_profiles=item_profiles,
        user_state=UserState.empty(len(users)),
        frequency=frequency,
        popularity=DecayedCounts(24.0),
        corpus=np.arange(workload.NUM_ITEMS, dtype=np.int64),
    )


def examples_of(task: workload.Task) -> Examples:
    """Return the task's examples, without histories."""
    num_examples = len(task.user)
    nothing = np.zeros(num_examples, np.int64)
    return Examples(
        event_id=np.arange(num_examples, dtype=np.uint64),
        user=task.user,
        item=task.item,
        event_time_ms=np.arange(num_examples, dtype=np.int64),
        weight=np.ones(num_examples, np.float32),
        past=Ragged(np.zeros(0, np.int64), np.zeros(len(task.user_features) + 1, np.int64)),
        history_start=nothing,
        history_end=nothing,
    )


def _admit_all(count: int) -> IdMap:
    ids = IdMap("int")
    ids.add(np.arange(count))
    ids.counts[:] = 1
    ids.admit(1)
    return ids


def _encode(
    values: npt.NDArray[np.int64], cardinalities: tuple[int, ...]
) -> tuple[FeatureSpec, EncodedFeatures]:
    """Return a specification that knows every value, and the rows of `values`."""
    names = [f"field_{place}" for place in range(len(cardinalities))]
    longest = np.arange(max(cardinalities))
    frame = pl.DataFrame(
        {name: longest % size for name, size in zip(names, cardinalities, strict=True)}
    ).cast(pl.String)
    spec = FeatureSpec.fit({name: FeatureSettings(kind="categorical") for name in names}, frame)
    categorical = np.empty(values.shape, np.int32)
    for place, field in enumerate(spec.coded):
        categorical[:, place] = np.array(field.rows, np.int32)[values[:, place]]
    empty = spec.missing(len(values))
    return spec, empty._replace(categorical=categorical)
