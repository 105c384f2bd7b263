"""New, a duplicate or a conflict: the fate of each event, decided before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from twotower.data.event_log.blocks import NameCodes, event_keys, payloads
from twotower.data.event_log.interface import Fate
from twotower.data.event_log.known_events import KnownEvents
from twotower.data.events import MAX_NAMES, Event
from twotower.data.schema import EventIdArray

__all__ = ["Batch", "Judged", "judge"]


class Batch(NamedTuple):
    """The events of one append."""

    events: Sequence[Event]
    keys: EventIdArray
    payloads: EventIdArray
    received_ms: int

    @classmethod
    def of(cls, events: Sequence[Event], received_ms: int) -> Batch:
        """Return a batch with its keys and digests."""
        return cls(events, event_keys(events), payloads(events), received_ms)


class Judged(NamedTuple):
    """What becomes of the events of several batches."""

    events: list[Event]
    """Those to store, in order."""
    keys: EventIdArray
    payloads: EventIdArray
    fates: list[list[Fate]]
    """A list a batch."""
    names: NameCodes
    """All names after storing them."""


def judge(batches: Sequence[Batch], known: KnownEvents, names: NameCodes) -> Judged:
    """Decide for each event, in order, whether it is new."""
    return _all_new(batches, known, names) or _one_by_one(batches, known, names)


def _all_new(batches: Sequence[Batch], known: KnownEvents, names: NameCodes) -> Judged | None:
    """Return the answer where every event is new and names nothing new: the common case."""
    keys = np.concatenate([batch.keys for batch in batches])
    events = [event for batch in batches for event in batch.events]
    if (
        _has_twins(keys)
        or known.find(keys)[0].any()
        or {event.outcome for event in events} - {None, *names.outcomes}
        or {event.stage for event in events} - {None, *names.stages}
    ):
        return None
    fates = [[Fate.STORED] * len(batch.events) for batch in batches]
    return Judged(events, keys, np.concatenate([batch.payloads for batch in batches]), fates, names)


def _has_twins(keys: EventIdArray) -> bool:
    ascending = np.sort(keys)
    return bool((ascending[1:] == ascending[:-1]).any())


def _one_by_one(batches: Sequence[Batch], known: KnownEvents, names: NameCodes) -> Judged:
    events: list[Event] = []
    stored: dict[int, int] = {}
    fates: list[list[Fate]] = []
    outcomes, stages = dict.fromkeys(names.outcomes), dict.fromkeys(names.stages)
    for batch in batches:
        is_known, found = known.find(batch.keys)
        fates.append([])
        rows = zip(
            *(batch.events, batch.keys.tolist(), batch.payloads.tolist()),
            *(is_known.tolist(), found.tolist()),
            strict=True,
        )
        for event, key, payload, is_old, old in rows:
            earlier = old if is_old else stored.get(key)
            if earlier is not None:
                fate = Fate.DUPLICATE if earlier == payload else Fate.CONFLICT
            elif _is_full(outcomes, event.outcome) or _is_full(stages, event.stage):
                fate = Fate.TOO_MANY_NAMES
            else:
                fate = Fate.STORED
                events.append(event)
                stored[key] = payload
            fates[-1].append(fate)
    keys = np.fromiter(stored.keys(), np.uint64, len(stored))
    digests = np.fromiter(stored.values(), np.uint64, len(stored))
    return Judged(events, keys, digests, fates, NameCodes(tuple(outcomes), tuple(stages)))


def _is_full(names: dict[str, None], name: str | None) -> bool:
    """Note `name`; return whether there is no code left for it."""
    if name is None or name in names:
        return False
    if len(names) >= MAX_NAMES:
        return True
    names[name] = None
    return False
