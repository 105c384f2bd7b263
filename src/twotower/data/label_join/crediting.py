"""Which impression an outcome is credited to: the latest of its key that it can have followed.

An outcome is decided when the watermark has passed it, or when it arrives if that is later: then
all impressions at or before it have arrived, but for late ones. What finds none is credited to
the first late one that comes. Deciding in arrays is exact where no impression of the key came
late; the outcomes of keys with a late one are looked at one by one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final, NamedTuple

import numpy as np

from twotower.data.label_join.accepting import is_in
from twotower.data.label_join.state import Outcomes, Shown
from twotower.data.schema import BoolArray, IntArray

__all__ = ["NOBODY", "Credits", "Impressions", "Undecided", "credit"]

NOBODY: Final = -1


class Impressions(NamedTuple):
    """All that an outcome may be credited to, `p` impressions by offset."""

    rows: Shown
    entered: IntArray
    """`int64[p]`, the step at which each arrived, -1 before this batch."""
    is_late: BoolArray
    """`bool[p]`, arrived in this batch when the watermark had reached it."""


class Undecided(NamedTuple):
    """`q` outcomes without an impression."""

    rows: Outcomes
    decided: IntArray
    """`int64[q]`, the step at which the watermark reaches each, not before it arrives: -1 before
    this batch, beyond the last step where it must wait."""
    oldest_ms: IntArray
    """`int64[q]`, it is credited to no impression before that."""


class Credits(NamedTuple):
    """What became of `q` outcomes."""

    impression: IntArray
    """`int64[q]`, place among the impressions, `NOBODY` for none."""
    step: IntArray
    """`int64[q]`, when it was credited."""


def credit(shown: Impressions, outcomes: Undecided, num_steps: int) -> Credits:
    """Return the impression of each outcome that this batch decides."""
    is_ready = outcomes.decided < num_steps
    near = np.flatnonzero(is_in(shown.rows.match_key, outcomes.rows.match_key[is_ready]))
    late_keys = shown.rows.match_key[near[shown.is_late[near]]]
    is_walked = is_ready & is_in(outcomes.rows.match_key, late_keys)
    credited = Credits(np.full(len(is_ready), NOBODY), outcomes.decided.copy())
    _credit_together(shown, near, outcomes, np.flatnonzero(is_ready & ~is_walked), credited)
    if is_walked.any():
        _credit_singly(shown, near, outcomes, np.flatnonzero(is_walked), credited)
    return credited


def _credit_together(
    shown: Impressions, near: IntArray, outcomes: Undecided, rows: IntArray, credited: Credits
) -> None:
    """Credit each outcome to the latest impression at or before it: one sort."""
    keys = np.concatenate([shown.rows.match_key[near], outcomes.rows.match_key[rows]])
    times = np.concatenate([shown.rows.time_ms[near], outcomes.rows.time_ms[rows]])
    order = np.lexsort((times, keys))  # stable: at equal times impressions come first
    is_impression = order < len(near)
    latest = np.maximum.accumulate(np.where(is_impression, np.arange(len(order)), -1))
    at = np.flatnonzero(~is_impression & (latest >= 0))
    found, outcome = order[latest[at]], rows[order[at] - len(near)]
    fits = (keys[order[at]] == keys[found]) & (times[found] >= outcomes.oldest_ms[outcome])
    credited.impression[outcome[fits]] = near[found[fits]]


def _credit_singly(
    shown: Impressions, near: IntArray, outcomes: Undecided, rows: IntArray, credited: Credits
) -> None:
    """Credit each outcome to the latest impression that had arrived when it was decided, else to
    the first that arrived afterwards."""
    impressions = defaultdict(list)
    for place in near.tolist():
        key = int(shown.rows.match_key[place])
        impressions[key].append((int(shown.rows.time_ms[place]), place, int(shown.entered[place])))
    for row in rows.tolist():
        oldest, time = int(outcomes.oldest_ms[row]), int(outcomes.rows.time_ms[row])
        same = impressions.get(int(outcomes.rows.match_key[row]), [])
        fitting = [found for found in same if oldest <= found[0] <= time]
        arrived = [found for found in fitting if found[2] <= outcomes.decided[row]]
        if arrived:
            credited.impression[row] = max(arrived)[1]
        elif fitting:
            _, place, entered = min(fitting, key=lambda found: found[1])
            credited.impression[row], credited.step[row] = place, entered
