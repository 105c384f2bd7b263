"""One batch of the label join: events and the state before, to examples and the state after.

A function of its arguments, without files or clocks. Cutting a log into other batches gives the
same examples in the same order, because everything is decided at a step of the watermark that
depends on the log alone. Legend: `n` events of the batch, `p` impressions, `q` outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar

import numpy as np

from twotower.data.events import EventColumns
from twotower.data.example_log.columns import CANDIDATE, IMPRESSION, LATE_POSITIVE, JoinedExamples
from twotower.data.label_join.accepting import Accepted, accept
from twotower.data.label_join.arriving import Arrived, arrive
from twotower.data.label_join.crediting import NOBODY, Credits, Impressions, Undecided, credit
from twotower.data.label_join.emitting import Cuts, Due, cut_days, emit, late_positives
from twotower.data.label_join.settings import JoinSettings
from twotower.data.label_join.state import (
    JoinState,
    Outcomes,
    Remembered,
    Shown,
    Waiting,
    joined_rows,
    picked_rows,
)
from twotower.data.label_join.watermark import BEGINNING_MS, Steps, watermark_steps
from twotower.data.schema import BoolArray, IntArray

__all__ = ["EMITTED_LATE", "FATES", "NUM_DROPPED", "JoinedBatch", "join_batch", "newest_dropped"]

FATES: Final = (
    *("positive", "negative", "candidate", "late_positive", "credited_outcome"),
    *("repeated_outcome", "other_outcome", "orphan_outcome", "duplicate", "future", "too_late"),
)
"""What becomes of an event: each has one of these in the end."""
EMITTED_LATE: Final = "emitted_late"
"""Counted beside the fates: examples whose event came when they were due already."""
NUM_DROPPED: Final = 100


class JoinedBatch(NamedTuple):
    """What one batch gives."""

    state: JoinState
    examples: JoinedExamples
    cuts: Cuts
    counts: dict[str, int]
    """Events by fate, and `EMITTED_LATE`."""
    dropped: list[tuple[int, str]]
    """Offset and fate of the newest events that became nothing."""
    newest_event_time_ms: int
    """Of the accepted events, `BEGINNING_MS` without any."""


class _Limits(NamedTuple):
    window_ms: int
    remember_ms: int


class _Settled(NamedTuple):
    """The outcomes that were credited, `q` flags each; every other one found no impression yet."""

    is_label: BoolArray
    is_late: BoolArray
    is_repeated: BoolArray


def join_batch(
    state: JoinState,
    events: EventColumns,
    settings: JoinSettings,
    time_zone: str,
    now_ms: int | None,
) -> JoinedBatch:
    """Join one batch.

    Args:
        state: after the batch before.
        events: `n` events, following those of the batch before; none at all is a batch too.
        settings: window, lateness, memory.
        time_zone: IANA name, for where days end.
        now_ms: the present where the batch reaches the log's end, else None.

    Raises:
        LineageError: the state and the log hold IDs of different kinds.
    """
    limits = _Limits(int(settings.window_s * 1000), int(settings.remember_s * 1000))
    steps = watermark_steps(state.clock, events, settings, now_ms)
    accepted = accept(events, state.remembered, steps, limits.remember_ms)
    arrived = arrive(events, accepted.is_accepted, settings.positive_outcomes)
    shown = _impressions(state, arrived, steps)
    outcomes = _undecided(state, arrived, steps, limits)
    credited = credit(shown, outcomes, len(steps.watermark_ms))
    settled = _settle(state, shown, outcomes.rows, credited, steps, limits)
    labelled = _credited(shown.rows, credited, settled.is_label)
    late = late_positives(picked_rows(outcomes.rows, settled.is_late))
    waiting = _waiting(state, arrived, late, credited.step[settled.is_late], steps, limits)
    emitted = waiting.emitted(len(steps.watermark_ms))
    first = state.num_examples
    examples = emit(emitted, labelled, first, settings.late_positive_weight)
    cuts = cut_days(steps, emitted, state.next_midnight_ms, limits.window_ms, time_zone, first)
    is_open = credited.impression == NOBODY
    is_orphan = is_open & ~_is_remembered(outcomes.rows.time_ms, steps, limits)
    known = _credited(labelled, credited, settled.is_late)
    after = JoinState(
        clock=steps.clock,
        num_examples=first + len(examples.offset),
        next_midnight_ms=cuts.next_midnight_ms,
        remembered=_forget(joined_rows(state.remembered, arrived.remembered), steps, limits),
        shown=_forget(known, steps, limits),
        waiting=_by_offset(picked_rows(waiting.rows, waiting.step >= len(steps.watermark_ms))),
        outcomes=picked_rows(outcomes.rows, is_open & ~is_orphan),
    )
    counts = _example_counts(examples, emitted) | _outcome_counts(settled, is_orphan)
    counts |= _event_counts(accepted, arrived)
    dropped = _dropped(events, accepted, outcomes.rows.offset[is_orphan])
    newest = arrived.remembered.time_ms.max(initial=BEGINNING_MS)
    return JoinedBatch(after, examples, cuts, counts, dropped, int(newest))


def _impressions(state: JoinState, arrived: Arrived, steps: Steps) -> Impressions:
    before, place = np.full(len(state.shown.offset), -1), arrived.shown_place
    is_late = arrived.shown.time_ms <= steps.before_ms[place]
    return Impressions(
        rows=joined_rows(state.shown, arrived.shown),
        entered=np.concatenate([before, 2 * place + 1]),
        is_late=np.concatenate([before > 0, is_late]),
    )


def _undecided(state: JoinState, arrived: Arrived, steps: Steps, limits: _Limits) -> Undecided:
    rows, place = joined_rows(state.outcomes, arrived.outcomes), arrived.outcomes_place
    was_reached = state.outcomes.time_ms <= state.clock.reached_ms
    before = np.where(was_reached, -1, steps.first(state.outcomes.time_ms))
    new = np.maximum(2 * place + 1, steps.first(arrived.outcomes.time_ms))
    met_ms = np.concatenate([state.outcomes.time_ms, steps.before_ms[place]])
    return Undecided(
        rows=rows,
        decided=np.concatenate([before, new]),
        oldest_ms=np.maximum(rows.time_ms, met_ms) - limits.remember_ms,
    )


def _settle(
    state: JoinState,
    shown: Impressions,
    outcomes: Outcomes,
    credited: Credits,
    steps: Steps,
    limits: _Limits,
) -> _Settled:
    """Return what each credited outcome does: only the first of an impression does anything.

    It labels the impression if it happened within the window and came before the emission.
    """
    found = np.flatnonzero(credited.impression != NOBODY)
    keys = (outcomes.offset[found], outcomes.time_ms[found], credited.step[found])
    found = found[np.lexsort(keys)]
    impression = credited.impression[found]
    is_first = np.zeros(len(found), np.bool_)
    is_first[np.unique(impression, return_index=True)[1]] = True
    is_first &= ~shown.rows.is_positive[impression]
    due_ms = shown.rows.time_ms[impression] + limits.window_ms
    emitted = np.maximum(shown.entered[impression], steps.first(due_ms))
    is_waiting = np.isin(shown.rows.offset[impression], state.waiting.offset)
    emitted[(shown.entered[impression] < 0) & ~is_waiting] = -1
    is_label = (credited.step[found] <= emitted) & (outcomes.time_ms[found] <= due_ms)
    flags = np.zeros((3, len(outcomes.offset)), np.bool_)
    flags[:, found] = is_first & is_label, is_first & ~is_label, ~is_first
    return _Settled(*flags)


def _credited(shown: Shown, credited: Credits, is_chosen: BoolArray) -> Shown:
    """Return the impressions with those positive to which chosen outcomes are credited."""
    is_positive = shown.is_positive.copy()
    is_positive[credited.impression[is_chosen]] = True
    return shown._replace(is_positive=is_positive)


def _waiting(
    state: JoinState,
    arrived: Arrived,
    late: Waiting,
    late_step: IntArray,
    steps: Steps,
    limits: _Limits,
) -> Due:
    """Return everything that is or will be an example and was not emitted before this batch."""
    rows = joined_rows(joined_rows(state.waiting, arrived.waiting), late)
    due_ms = rows.time_ms + limits.window_ms
    before = np.full(len(state.waiting.offset), -1)
    entered = np.concatenate([before, 2 * arrived.waiting_place + 1, late_step])
    first = steps.first(due_ms)
    return Due(rows, np.maximum(entered, first), due_ms, entered > first)


def _by_offset(rows: Waiting) -> Waiting:
    """Return the rows in an order that does not tell how the log was cut into batches."""
    is_sorted = bool((np.diff(rows.offset) > 0).all())
    return rows if is_sorted else picked_rows(rows, np.argsort(rows.offset))


def _is_remembered(time_ms: IntArray, steps: Steps, limits: _Limits) -> BoolArray:
    return time_ms >= steps.clock.reached_ms - limits.remember_ms


Timed = TypeVar("Timed", Remembered, Shown)


def _forget(rows: Timed, steps: Steps, limits: _Limits) -> Timed:
    is_remembered = _is_remembered(rows.time_ms, steps, limits)
    return rows if is_remembered.all() else picked_rows(rows, is_remembered)


def _example_counts(examples: JoinedExamples, emitted: Due) -> dict[str, int]:
    is_impression = examples.kind == IMPRESSION
    return {
        "positive": int((is_impression & examples.is_positive).sum()),
        "negative": int((is_impression & ~examples.is_positive).sum()),
        "candidate": int((examples.kind == CANDIDATE).sum()),
        "late_positive": int((examples.kind == LATE_POSITIVE).sum()),
        EMITTED_LATE: int(emitted.is_late.sum()),
    }


def _outcome_counts(settled: _Settled, is_orphan: BoolArray) -> dict[str, int]:
    return {
        "credited_outcome": int(settled.is_label.sum()),
        "repeated_outcome": int(settled.is_repeated.sum()),
        "orphan_outcome": int(is_orphan.sum()),
    }


def _event_counts(accepted: Accepted, arrived: Arrived) -> dict[str, int]:
    return {
        "other_outcome": arrived.num_other_outcomes,
        "duplicate": int(accepted.is_duplicate.sum()),
        "future": int(accepted.is_future.sum()),
        "too_late": int(accepted.is_too_late.sum()),
    }


def _dropped(events: EventColumns, accepted: Accepted, orphans: IntArray) -> list[tuple[int, str]]:
    by_fate = {
        "duplicate": events.offset[accepted.is_duplicate],
        "future": events.offset[accepted.is_future],
        "too_late": events.offset[accepted.is_too_late],
        "orphan_outcome": np.sort(orphans),
    }
    return newest_dropped(
        (int(offset), fate) for fate, rows in by_fate.items() for offset in rows[-NUM_DROPPED:]
    )


def newest_dropped(dropped: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return those with the largest offsets, in order: the same however they came together."""
    return sorted(dropped)[-NUM_DROPPED:]
