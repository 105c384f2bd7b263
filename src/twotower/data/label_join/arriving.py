"""The accepted events of a batch as rows of the join's state, and the step at which each came.

Legend: `n` events of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.events import EVENT_KINDS, NO_NAME, EventColumns
from twotower.data.example_log.columns import CANDIDATE, IMPRESSION
from twotower.data.label_join.accepting import match_keys
from twotower.data.label_join.state import Outcomes, Remembered, Shown, Waiting
from twotower.data.schema import BoolArray, IntArray

__all__ = ["Arrived", "arrive"]

_SHOWN, _OUTCOME, _ELIMINATED = (
    EVENT_KINDS.index(kind) for kind in ("impression", "outcome", "candidate")
)


class Arrived(NamedTuple):
    """What a batch adds to the state. Places are those among its events."""

    remembered: Remembered
    shown: Shown
    shown_place: IntArray
    waiting: Waiting
    waiting_place: IntArray
    outcomes: Outcomes
    outcomes_place: IntArray
    num_other_outcomes: int
    """Outcomes that are no positives."""


def arrive(
    events: EventColumns, is_accepted: BoolArray, positive_outcomes: tuple[str, ...]
) -> Arrived:
    """Return the rows of the accepted events.

    Args:
        events: `n` events.
        is_accepted: `bool[n]`.
        positive_outcomes: names of the outcomes that make a positive.
    """
    codes = [events.outcome_names.index(n) for n in positive_outcomes if n in events.outcome_names]
    is_outcome = is_accepted & (events.kind == _OUTCOME)
    is_positive = is_outcome & np.isin(events.outcome, codes)
    waiting = np.flatnonzero(is_accepted & (events.kind != _OUTCOME))
    shown = np.flatnonzero(is_accepted & (events.kind == _SHOWN))
    positive = np.flatnonzero(is_positive)
    return Arrived(
        remembered=Remembered(events.event_key[is_accepted], events.event_time_ms[is_accepted]),
        shown=_shown(events.take(shown)),
        shown_place=shown,
        waiting=_waiting(events.take(waiting)),
        waiting_place=waiting,
        outcomes=_outcomes(events.take(positive)),
        outcomes_place=positive,
        num_other_outcomes=int((is_outcome & ~is_positive).sum()),
    )


def _shown(events: EventColumns) -> Shown:
    is_positive = np.zeros(len(events.offset), np.bool_)
    return Shown(events.offset, match_keys(events), events.event_time_ms, is_positive)


def _waiting(events: EventColumns) -> Waiting:
    is_candidate = events.kind == _ELIMINATED
    return Waiting(
        offset=events.offset,
        kind=np.where(is_candidate, CANDIDATE, IMPRESSION).astype(np.uint8),
        event_key=events.event_key,
        user_id=events.user_id,
        item_id=events.item_id,
        time_ms=events.event_time_ms,
        stage=_stages(events),
    )


def _outcomes(events: EventColumns) -> Outcomes:
    return Outcomes(
        offset=events.offset,
        event_key=events.event_key,
        match_key=match_keys(events),
        user_id=events.user_id,
        item_id=events.item_id,
        time_ms=events.event_time_ms,
    )


def _stages(events: EventColumns) -> npt.NDArray[np.bytes_]:
    names = [name.encode() for name in events.stage_names]
    by_code = np.array([*names, *[b""] * (NO_NAME + 1 - len(names))], dtype=np.bytes_)
    stages: npt.NDArray[np.bytes_] = by_code[events.stage]
    return stages
