"""The full update: warm start from the last FULL model, the day shuffled, one epoch, everything.

Every parameter trains, dense and embedding rows alike. Increments never enter: the parent is
always a full generation, and each day's events are trained by exactly one full update.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import msgspec
import numpy as np

from twotower.checkpoint import Checkpoint, CheckpointMeta, Turnover
from twotower.data.days import ImportedData
from twotower.data.examples import Examples, build_examples
from twotower.data.held_out import HoldOutRule
from twotower.data.schema import IntArray
from twotower.model.settings import ModelSettings
from twotower.progress import SILENT, Progress
from twotower.training.growth import (
    EntityTables,
    admit,
    evict,
    forget,
    learn,
    refresh_profiles,
)
from twotower.training.hard_negatives import Miner, NegativeSources, list_negatives
from twotower.training.held_out import Division, check_division, divide
from twotower.training.resume import PassKeeper
from twotower.training.settings import AdmissionSettings, TrainingSettings
from twotower.training.training_pass import run_pass
from twotower.training.window import WindowEvents, check_shapes, day_number, open_window

__all__ = ["run_full_update"]


def run_full_update(
    parent: Checkpoint,
    data: ImportedData,
    through: str,
    *,
    model: ModelSettings,
    training: TrainingSettings,
    parent_name: str | None = None,
    progress: Progress = SILENT,
    keeper: PassKeeper | None = None,
    hold_out: HoldOutRule | None = None,
    skip: Sequence[str] = (),
    miner: Miner | None = None,
) -> Checkpoint:
    """Return the checkpoint that follows `parent` after the days up to `through`.

    Args:
        parent: the last full model; it is not changed.
        data: the import.
        through: last local day to train, such as `2022-05-01`.
        model: must be the shapes that the parent was made with.
        training: settings of this run.
        parent_name: generation that the parent was published as.
        progress: told of every step.
        keeper: saves the running pass and finds what was saved; None for neither.
        hold_out: how many positives are left for the next night, to judge this one by; None for
            none. What the parent held out is trained in any case.
        skip: days before `through` that are left out for good, imported or not.
        miner: finds hard negatives in the parent's generation, where the settings ask for mined
            ones.

    Raises:
        LineageError: the day was trained already, is not imported, or was not trained once; or a
            day before it is missing.
        ConfigError: the model's shapes changed, or there is nothing to mine hard negatives from.
        DataError: the log has no candidates of the stages that count as hard negatives.
    """
    check_shapes(parent.meta.model, model)
    window = open_window(data, parent.meta.window, through, skip)
    tables = EntityTables.of(data)
    state = _child(parent, parent_name, model, training)
    events = window.events
    users, items = learn(state, tables, events.user_id, events.item_id, window.start_ms)
    division = divide(state, _examples(state, window, users, items), window, hold_out)
    examples = division.examples
    sources = NegativeSources(data, window, users, items, miner)
    negatives = list_negatives(state, sources, division, training.negatives)
    turnover = _turn_over(state, examples, day_number(through), training.admission)
    for table in state.model.tables.values():
        table.decay(training.accumulator_decay)
    trained = run_pass(
        state,
        examples,
        state.frequency.observe(examples.item),
        training=training,
        schedule=training.full,
        pass_number=day_number(through),
        progress=progress,
        task=f"full update {through}",
        keeper=keeper,
        listed=negatives.lists,
    )
    trained = check_division(trained, division, window)
    _advance(state, window, users, items, division)
    forgotten = forget(state, users, day_number(through), training.user_state.forget_after_days)
    refresh_profiles(state, tables, window.window.cut_ms)
    return state.replace_meta(
        window=window.window,
        trained=trained,
        turnover=msgspec.structs.replace(turnover, forgotten_users=forgotten),
        negatives=negatives.counts(trained.drawn_negatives),
    )


def _child(
    parent: Checkpoint, parent_name: str | None, model: ModelSettings, training: TrainingSettings
) -> Checkpoint:
    """Return a copy of the parent under the settings of this run."""
    state = copy.deepcopy(parent)
    state.meta = CheckpointMeta(
        kind="full",
        window=parent.meta.window,
        trained=parent.meta.trained,
        model=model,
        training=training,
        parent=parent_name,
    )
    state.frequency.learning_rate = training.frequency.learning_rate
    state.frequency.floor = training.frequency.floor
    return state


def _turn_over(
    state: Checkpoint, examples: Examples, day: int, admission: AdmissionSettings
) -> Turnover:
    """Give rows to the IDs that have earned them and free those of IDs unseen for long."""
    admitted = admit(state, examples.user, examples.item, day, admission)
    evicted = evict(state, day, admission.evict_after_days)
    return msgspec.structs.replace(
        admitted, evicted_users=evicted.evicted_users, evicted_items=evicted.evicted_items
    )


def _examples(
    state: Checkpoint, window: WindowEvents, users: IntArray, items: IntArray
) -> Examples:
    positive = window.events.outcome
    return build_examples(
        event_id=window.events.event_id[positive],
        user=users[positive],
        item=items[positive],
        event_time_ms=window.events.event_time_ms[positive],
        recent=state.user_state.recent,
        num_users=len(state.users),
        history_length=state.meta.model.history_length,
        weight=window.events.weights()[positive],
    )


def _advance(
    state: Checkpoint, window: WindowEvents, users: IntArray, items: IntArray, division: Division
) -> None:
    """Bring user state and popularity from the parent's cut to the window's.

    User state knows every event, since that is what will be served; popularity, like frequency,
    admission and the parameters, learns of a held-out positive with the night that trains it.
    """
    events = window.events
    state.user_state = state.user_state.advance(
        users,
        items,
        events.outcome,
        num_users=len(state.users),
        recent_limit=state.meta.model.history_length,
        seen_limit=state.meta.training.user_state.seen_limit,
    )
    cut_ms = window.window.cut_ms
    # A day column may put an event behind its midnight: it still belongs to this cut.
    times = np.minimum(division.examples.event_time_ms, cut_ms - 1)
    state.popularity.advance(division.examples.item, times, cut_ms)
    state.popularity.grow(len(state.items))
    state.held_out = division.withheld
