"""What a full update trains of its window: all but the held-out positives, and those of last time.

Rows trained = positives of the window - withheld + carried over, and so for their digests: over a
lineage every positive is trained by exactly one full update. Legend: `n` examples.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.checkpoint import Checkpoint, Trained
from twotower.data.examples import Examples, join_examples
from twotower.data.held_out import HeldOut, HoldOutRule, choose_held_out
from twotower.data.schema import DayEvents
from twotower.data.user_state import Ragged
from twotower.training.training_pass import check_trained_once
from twotower.training.window import WindowEvents

__all__ = ["Division", "check_division", "divide"]


class Division(NamedTuple):
    """A window's positives, and those that the parent carried, as they are trained."""

    examples: Examples
    """Carried over first, then the window's without the withheld: the order of event time."""
    carried: HeldOut
    withheld: HeldOut


def divide(
    state: Checkpoint, examples: Examples, window: WindowEvents, rule: HoldOutRule | None
) -> Division:
    """Take the held-out positives from a window's examples and add the carried ones.

    Args:
        state: knows every ID; `state.held_out` is what the parent carries.
        examples: `n`, of the window's positives in their order.
        window: where they come from.
        rule: None to hold out nothing.
    """
    is_withheld = np.zeros(len(examples), np.bool_)
    if rule is not None:
        is_withheld = choose_held_out(examples.user, window.window.cut_ms, rule)
    kept = examples.at(np.flatnonzero(~is_withheld))
    carried = state.held_out
    trained = join_examples(_carried_examples(state, carried, examples), kept)
    trained = dataclasses.replace(trained, past=_behind(examples.past, carried.history))
    return Division(trained, carried, _withheld(window.events, examples, is_withheld))


def check_division(trained: Trained, division: Division, window: WindowEvents) -> Trained:
    """Return the counts of a pass with those of its division.

    Raises:
        LineageError: not every positive was trained once.
    """
    carried, withheld = division.carried, division.withheld
    digest = int(window.digest, 16) + int(carried.digest, 16) - int(withheld.digest, 16)
    check_trained_once(
        trained,
        rows=window.num_positives - len(withheld) + len(carried),
        digest=f"{digest % 2**64:016x}",
    )
    return msgspec.structs.replace(
        trained,
        window_rows=window.num_positives,
        withheld_rows=len(withheld),
        carried_rows=len(carried),
    )


def _carried_examples(state: Checkpoint, carried: HeldOut, window: Examples) -> Examples:
    """Return the carried positives; their histories lie behind the lists of `window.past`."""
    start = len(window.past.values)
    return Examples(
        event_id=carried.event_id,
        user=state.users.positions(carried.user_id),
        item=state.items.positions(carried.item_id),
        event_time_ms=carried.event_time_ms,
        weight=carried.weights(),
        past=window.past,
        history_start=start + carried.history.offsets[:-1],
        history_end=start + carried.history.offsets[1:],
    )


def _behind(past: Ragged, histories: Ragged) -> Ragged:
    """Return `past` with more values behind its last list; the lists stay what they are."""
    return Ragged(np.concatenate([past.values, histories.values]), past.offsets)


def _withheld(events: DayEvents, examples: Examples, is_withheld: npt.NDArray[np.bool_]) -> HeldOut:
    chosen = np.flatnonzero(is_withheld)
    rows = np.flatnonzero(events.outcome)[chosen]
    return HeldOut(
        event_id=events.event_id[rows],
        user_id=events.user_id[rows],
        item_id=events.item_id[rows],
        event_time_ms=events.event_time_ms[rows],
        history=examples.histories(chosen),
        weight=examples.weight[chosen],
    )
