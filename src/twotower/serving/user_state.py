"""What users did since a generation's cut: recent clicks and seen items, from the event log.

A generation knows its users up to its cut; this adds what the log brings, as immutable snapshots:
a request reads one of them, and its answer names the offset. A snapshot is a function of the
generation and the offset alone, whatever the sizes of the pieces in which the log was read.
Events lie in a few runs, each sorted by user, which are merged as they grow: taking in a piece
costs what the piece costs, and looking a user up costs a bisection a run.
Legend: `n` events, `N` items of the generation, `m` other items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.events import EVENT_KINDS, EventColumns
from twotower.data.ids import lookup
from twotower.data.schema import BoolArray, IdArray
from twotower.publishing.entities import Entities

__all__ = ["MAX_EVENTS", "NO_ACTIONS", "UserActions", "UserEvents"]

IntArray = npt.NDArray[np.int64]

MAX_EVENTS: Final = 5_000_000
"""Newest events of the log that a snapshot answers from unless it is told otherwise."""
_GROWTH: Final = 4
_NEVER: Final = 2**63 - 1
_CANDIDATE: Final = EVENT_KINDS.index("candidate")


class UserActions(NamedTuple):
    """What one user did since the cut, as item codes; see `UserEvents.code`."""

    clicks: IntArray
    """Oldest to newest by event time."""
    seen: IntArray
    """Everything that was shown or acted on; may repeat itself."""


NO_ACTIONS: Final = UserActions(np.zeros(0, np.int64), np.zeros(0, np.int64))


class _Run(NamedTuple):
    """`n` events in ascending order of their users, those of one user in the order of the log."""

    user: IdArray
    code: npt.NDArray[np.int32]
    is_click: BoolArray
    time_ms: IntArray
    offset: IntArray

    def take(self, rows: slice | IntArray | BoolArray) -> _Run:
        columns: tuple[Any, ...] = self
        return _Run._make([column[rows] for column in columns])

    def of(self, user: IdArray) -> slice:
        """Return where the events of one user are; `user` has one element."""
        narrow = user if user.dtype == self.user.dtype else user.astype(self.user.dtype)
        if narrow[0] != user[0]:
            return slice(0, 0)
        start, end = (int(np.searchsorted(self.user, narrow, side)[0]) for side in _SIDES)
        return slice(start, end)


_SIDES: Final[tuple[Any, ...]] = ("left", "right")


class UserEvents:
    """A snapshot; it never changes, `extend` returns another one."""

    def __init__(
        self,
        items: Entities,
        cut_ms: int,
        *,
        event_cut: int | None = None,
        offset: int = 0,
        positive_outcomes: Sequence[str] = ("click",),
        max_events: int = MAX_EVENTS,
    ) -> None:
        """Know nothing yet.

        Args:
            items: of the generation.
            cut_ms: of the generation: earlier events are in its own state.
            event_cut: the log's offset at that cut: what came later is not, whenever it happened.
            offset: of the log, where the first piece begins.
            positive_outcomes: outcomes that count as clicks; others make an item seen only.
            max_events: the newest events that count; those before are forgotten.
        """
        self.offset = offset
        """Every event of the log before it is in here, or before the cut, or forgotten."""
        self.newest_event_time_ms = 0
        """Of the events in here, 0 without one."""
        self.strange = items.ids[:0]
        """`[m]`, items that the generation does not know, in the order of the log."""
        self._items = items
        self._cut_ms = cut_ms
        self._event_cut = _NEVER if event_cut is None else event_cut
        self._positive_outcomes = tuple(positive_outcomes)
        self._max_events = max_events
        self._order = np.zeros(0, np.int64)
        self._runs: tuple[_Run, ...] = ()

    @property
    def num_events(self) -> int:
        """How many events are held; those that are forgotten go with the next merge."""
        return sum(len(run.offset) for run in self._runs)

    def extend(self, events: EventColumns) -> UserEvents:
        """Return the snapshot after the next events of the log, which begin at `offset`."""
        if not len(events.offset):
            return self
        after = self._copy()
        after.offset = int(events.offset[-1]) + 1
        is_new = (events.event_time_ms >= self._cut_ms) | (events.offset >= self._event_cut)
        kept = events.take(is_new & (events.kind != _CANDIDATE))
        if len(kept.offset):
            after._add(kept)
        return after

    def _copy(self) -> UserEvents:
        copied = UserEvents.__new__(UserEvents)
        copied.__dict__.update(self.__dict__)
        return copied

    def _add(self, events: EventColumns) -> None:
        """Take events in; only of a snapshot that nobody reads yet."""
        order = np.argsort(events.user_id, kind="stable")
        run = _Run(
            events.user_id,
            self._codes(events.item_id),
            _are_clicks(events, self._positive_outcomes),
            events.event_time_ms,
            events.offset,
        ).take(order)
        newest_ms = int(events.event_time_ms.max())
        self.newest_event_time_ms = max(self.newest_event_time_ms, newest_ms)
        self._runs = _merged((*self._runs, run), self._first_offset())

    def _first_offset(self) -> int:
        return self.offset - self._max_events

    def _codes(self, item_ids: IdArray) -> npt.NDArray[np.int32]:
        """Return the code of each item, giving one to those that are new."""
        codes = self._items.positions_of(item_ids)
        others = item_ids[codes < 0]
        if len(others):
            self._learn(others)
            codes[codes < 0] = -1 - lookup(self.strange, self._order, others)
        return codes.astype(np.int32)

    def _learn(self, item_ids: IdArray) -> None:
        new = item_ids[lookup(self.strange, self._order, item_ids) < 0]
        if len(new):
            _, first = np.unique(new, return_index=True)
            self.strange = np.concatenate([self.strange, new[np.sort(first)]])
            self._order = np.argsort(self.strange, kind="stable")

    def of(self, user: IdArray) -> UserActions:
        """Return what a user did, by the stored form of the ID, an array of one element.

        A code of 0 or more is an item's position in the generation; -1 - j is `strange[j]`.
        """
        parts = [run.take(run.of(user)) for run in self._runs]
        parts = [part for part in parts if len(part.offset)]
        if not parts:
            return NO_ACTIONS
        found = parts[0] if len(parts) == 1 else _joined(parts)
        found = found.take(found.offset >= self._first_offset())
        clicks = found.take(found.is_click)
        oldest_first = np.lexsort((clicks.offset, clicks.time_ms))
        return UserActions(clicks.code[oldest_first].astype(np.int64), found.code.astype(np.int64))


def _are_clicks(events: EventColumns, positive: Sequence[str]) -> BoolArray:
    codes = [code for code, name in enumerate(events.outcome_names) if name in positive]
    return np.isin(events.outcome, np.array(codes, np.uint8))


def _joined(runs: Sequence[_Run]) -> _Run:
    return _Run._make([np.concatenate(columns) for columns in zip(*runs, strict=True)])


def _merged(runs: tuple[_Run, ...], first_offset: int) -> tuple[_Run, ...]:
    """Return the same events in runs each of which is several times as long as the next.

    Older runs come first, so that a stable sort keeps each user's events in the log's order.
    """
    while len(runs) > 1 and len(runs[-2].offset) < _GROWTH * len(runs[-1].offset):
        joined = _joined(runs[-2:])
        kept = joined.take(joined.offset >= first_offset)
        runs = (*runs[:-2], kept.take(np.argsort(kept.user, kind="stable")))
    return runs
