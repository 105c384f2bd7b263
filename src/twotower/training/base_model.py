"""The first model of a lineage: from the history that has no times, or from nothing.

Several epochs are allowed here, and stated in the checkpoint: there is no yesterday to start
from, and the history's order across users is unknown, so a seeded random one stands in for it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint, CheckpointMeta, Trained, Window, feature_shape
from twotower.data.days import ImportedData, event_digest
from twotower.data.examples import Examples, build_examples, join_examples
from twotower.data.features import FeatureSpec
from twotower.data.ids import IdMap
from twotower.data.popularity import DecayedCounts
from twotower.data.schema import HistoryLists, IntArray
from twotower.data.settings import EntitySource
from twotower.data.user_state import Ragged, UserState, append_ragged, newest
from twotower.errors import LineageError
from twotower.model.frequency import FrequencyEstimator
from twotower.model.settings import ModelSettings
from twotower.model.towers import TwoTower
from twotower.progress import SILENT, Progress
from twotower.training.growth import EntityTables, admit, learn
from twotower.training.resume import PassKeeper
from twotower.training.settings import TrainingSettings
from twotower.training.training_pass import AfterEpoch, check_trained_once, run_pass
from twotower.training.window import day_number

__all__ = ["train_base_model"]


class _Lists(NamedTuple):
    """The history over user positions: positives with repeats, shown items without."""

    positives: Ragged
    seen: Ragged


def train_base_model(
    data: ImportedData,
    *,
    users: EntitySource | None,
    items: EntitySource | None,
    model: ModelSettings,
    training: TrainingSettings,
    progress: Progress = SILENT,
    keeper: PassKeeper | None = None,
    after_epoch: AfterEpoch | None = None,
) -> Checkpoint:
    """Return the checkpoint that the first full update starts from.

    Args:
        data: the import; its history, where there is one, is trained.
        users: declares the users' features.
        items: declares the items' features.
        model: shapes.
        training: settings; the pass is `training.base`.
        progress: told of every step.
        keeper: saves the running pass and finds what was saved; None for neither.
        after_epoch: see `run_pass`; the state knows the users' lists by then.

    Raises:
        LineageError: no day is imported.
    """
    if not data.days:
        raise LineageError("expected at least one imported day, found none; import events first")
    cut_ms = data.day_entry(data.days[0]).start_ms
    tables = EntityTables.of(data)
    state = _untrained(data, tables, users, items, model, training, cut_ms)
    history = data.history()
    if history is None:
        learn(state, tables, state.users.ids, state.items.ids, cut_ms)
        state.user_state = UserState.empty(len(state.users))
        state.popularity.grow(len(state.items))
        return state
    lists = _learn_lists(state, tables, history, cut_ms)
    examples = _examples(lists, model.history_length, training)
    admit(state, examples.user, examples.item, day_number(data.days[0]) - 1, training.admission)
    state.user_state = UserState(
        newest(lists.positives, model.history_length),
        newest(lists.seen, training.user_state.seen_limit),
    )
    state.model = _new_model(state)
    trained = run_pass(
        state,
        examples,
        _observe_in_random_order(state, examples.item),
        training=training,
        schedule=training.base,
        pass_number=0,
        progress=progress,
        task="base model",
        keeper=keeper,
        after_epoch=after_epoch,
    )
    check_trained_once(trained, rows=len(examples), digest=event_digest(examples.event_id))
    state.popularity.grow(len(state.items))
    return state.replace_meta(trained=trained)


def _untrained(
    data: ImportedData,
    tables: EntityTables,
    users: EntitySource | None,
    items: EntitySource | None,
    model: ModelSettings,
    training: TrainingSettings,
    cut_ms: int,
) -> Checkpoint:
    """Return the state of a lineage that knows the feature values and nothing else."""
    user_spec = FeatureSpec.fit(users.features if users else {}, tables.users)
    item_spec = FeatureSpec.fit(items.features if items else {}, tables.items)
    state = Checkpoint(
        meta=CheckpointMeta(
            kind="base",
            window=Window(from_day=None, through_day=None, cut_ms=cut_ms),
            trained=_nothing_trained(),
            model=model,
            training=training,
        ),
        model=None,  # type: ignore[arg-type]  # made two lines below, from the state's shapes
        optimizer={},
        users=IdMap(data.user_id_kind),
        items=IdMap(data.item_id_kind),
        user_features=user_spec,
        item_features=item_spec,
        user_profiles=user_spec.missing(0),
        item_profiles=item_spec.missing(0),
        user_state=UserState.empty(0),
        frequency=FrequencyEstimator(training.frequency.learning_rate, training.frequency.floor),
        popularity=DecayedCounts(model.popularity.half_life_h),
        corpus=np.zeros(0, np.int64),
    )
    state.model = _new_model(state)
    return state


def _nothing_trained() -> Trained:
    return Trained(
        rows=0,
        distinct_event_ids=0,
        digest=event_digest(np.zeros(0, np.uint64)),
        epochs=0,
        steps=0,
        loss=0.0,
        seconds=0.0,
        examples_per_s=0.0,
    )


def _new_model(state: Checkpoint) -> TwoTower:
    """Return a model with random rows for every ID that the state has admitted."""
    return TwoTower.create(
        state.meta.model,
        user_shape=feature_shape(state.user_features),
        item_shape=feature_shape(state.item_features),
        num_user_rows=state.users.num_rows,
        num_item_rows=state.items.num_rows,
        generator=torch.Generator().manual_seed(state.meta.training.seed),
    )


def _learn_lists(
    state: Checkpoint, tables: EntityTables, history: HistoryLists, cut_ms: int
) -> _Lists:
    """Make everybody in the history known; return it by position."""
    item_ids = np.concatenate([history.positives, history.seen])
    users, items = learn(state, tables, history.user_id, item_ids, cut_ms)
    positives, seen = np.split(items, [len(history.positives)])

    def by_position(values: IntArray, offsets: IntArray) -> Ragged:
        owners = np.repeat(users, np.diff(offsets))
        nothing = Ragged.empty(len(state.users))
        return append_ragged(nothing, owners, values, num_lists=len(state.users), limit=0)

    return _Lists(
        by_position(positives, history.positive_offsets), by_position(seen, history.seen_offsets)
    )


def _examples(lists: _Lists, history_length: int, training: TrainingSettings) -> Examples:
    """Return each positive with its history, and shown items as weak positives.

    A shown item without the outcome has the user's whole list as its history: the source does
    not say when it was shown.
    """
    users = lists.positives.owners()
    order_in_list = np.arange(len(users)) - lists.positives.offsets[users]
    num_users = len(lists.positives.offsets) - 1
    positives = build_examples(
        event_id=np.arange(len(users), dtype=np.uint64),
        user=users,
        item=lists.positives.values,
        event_time_ms=order_in_list,
        recent=Ragged.empty(num_users),
        num_users=num_users,
        history_length=history_length,
    )
    if training.base_history == "others":
        ends = lists.positives.offsets[users + 1]
        starts = np.maximum(lists.positives.offsets[users], ends - history_length)
        positives = dataclasses.replace(
            positives, history_start=starts, history_end=ends, leaves_out_own=True
        )
    weight = training.base_shown_weight
    if weight == 0:
        return positives
    return join_examples(positives, _shown(lists, positives, history_length, weight))


def _shown(
    lists: _Lists, positives: Examples, history_length: int, shown_weight: float
) -> Examples:
    shown_users = lists.seen.owners()
    is_shown_only = ~_pairs_in(
        shown_users, lists.seen.values, lists.positives.owners(), lists.positives.values
    )
    users, items = shown_users[is_shown_only], lists.seen.values[is_shown_only]
    ends = lists.positives.offsets[users + 1]
    return dataclasses.replace(
        positives,
        event_id=np.arange(len(users), dtype=np.uint64) + np.uint64(len(positives)),
        user=users,
        item=items,
        event_time_ms=np.zeros(len(users), np.int64),
        weight=np.full(len(users), shown_weight, np.float32),
        history_start=np.maximum(lists.positives.offsets[users], ends - history_length),
        history_end=ends,
    )


def _pairs_in(
    users: IntArray, items: IntArray, other_users: IntArray, other_items: IntArray
) -> npt.NDArray[np.bool_]:
    """Return which of the pairs are among the others."""
    width = int(max(items.max(initial=0), other_items.max(initial=0))) + 1
    return np.isin(users * width + items, other_users * width + other_items)


def _observe_in_random_order(state: Checkpoint, items: IntArray) -> npt.NDArray[np.float32]:
    order = np.random.default_rng(state.meta.training.seed).permutation(len(items))
    log_probability = np.empty(len(items), np.float32)
    log_probability[order] = state.frequency.observe(items[order])
    return log_probability
