"""Which events of a batch take part in the join: not the future, the forgotten and the repeated.

Legend: `n` events of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from twotower.data.days import mix64
from twotower.data.events import EventColumns
from twotower.data.label_join.state import Remembered
from twotower.data.label_join.watermark import BEGINNING_MS, Steps
from twotower.data.schema import BoolArray, EventIdArray, IdArray, IntArray

__all__ = ["Accepted", "accept", "hash_ids", "is_in", "match_keys"]


class Accepted(NamedTuple):
    """The fate of every event so far; exactly one of the four is true of each."""

    is_accepted: BoolArray
    is_future: BoolArray
    is_too_late: BoolArray
    is_duplicate: BoolArray


def accept(
    events: EventColumns, remembered: Remembered, steps: Steps, remember_ms: int
) -> Accepted:
    """Return which events take part, each judged by the watermark that it met.

    Args:
        events: `n` events.
        remembered: the event IDs that were accepted before.
        steps: the watermark through the batch.
        remember_ms: how far behind the watermark an event ID is remembered. An older event
            might be a duplicate, so it does not take part.
    """
    oldest = steps.before_ms - remember_ms
    is_too_late = ~steps.is_future & (events.event_time_ms < oldest)
    is_open = ~steps.is_future & ~is_too_late
    is_duplicate = _duplicates(events, remembered, is_open, oldest)
    return Accepted(is_open & ~is_duplicate, steps.is_future, is_too_late, is_duplicate)


def _duplicates(
    events: EventColumns, remembered: Remembered, is_open: BoolArray, oldest_ms: IntArray
) -> BoolArray:
    """Return which events repeat the ID of an accepted one that is still remembered.

    IDs that occur once are told apart by hashing; the others are walked one by one, since an ID
    that comes again with another time may outlive its first.
    """
    known_keys, known_times = remembered
    keys = events.event_key
    repeats = keys[~pl.Series(keys).is_first_distinct().to_numpy() | is_in(keys, known_keys)]
    is_duplicate = np.zeros(len(keys), np.bool_)
    if not len(repeats):
        return is_duplicate
    known = is_in(known_keys, repeats)
    newest: dict[int, int] = {}
    for key, time in zip(known_keys[known].tolist(), known_times[known].tolist(), strict=True):
        newest[key] = max(time, newest.get(key, BEGINNING_MS))
    for row in np.flatnonzero(is_in(keys, repeats) & is_open).tolist():
        key, time = int(keys[row]), int(events.event_time_ms[row])
        is_duplicate[row] = key in newest and newest[key] >= oldest_ms[row]
        if not is_duplicate[row]:
            newest[key] = max(time, newest.get(key, BEGINNING_MS))
    return is_duplicate


def is_in(keys: EventIdArray, wanted: EventIdArray) -> BoolArray:
    """Return for each key whether it is among `wanted`, by hashing."""
    if not len(keys) or not len(wanted):
        return np.zeros(len(keys), np.bool_)
    return pl.Series(keys).is_in(pl.Series(wanted).implode()).to_numpy()


def match_keys(events: EventColumns) -> EventIdArray:
    """Return `uint64[n]`, equal where user, item and request are: what an outcome is matched by.

    64 bits: among a hundred million remembered impressions a new outcome meets a foreign one with
    a chance of 5e-12.
    """
    pair = mix64(mix64(hash_ids(events.user_id)) ^ hash_ids(events.item_id))
    return pair ^ events.request_key


def hash_ids(ids: IdArray) -> EventIdArray:
    """Return 64 bits for each ID, the same in every run and whatever the array's width."""
    if ids.dtype.kind != "S":
        return ids.astype(np.int64, copy=False).view(np.uint64)
    width = -(-ids.dtype.itemsize // 8) * 8
    words = ids.astype(f"S{width}").view(np.uint64).reshape(len(ids), width // 8)
    mixed = np.zeros(len(ids), np.uint64)
    for word in words.T:
        mixed = np.where(word == 0, mixed, mix64(mixed ^ word))
    return mixed
