"""What every event log does: append durably, read from an offset, follow, forget.

The n-th event stored has offset n. A log keeps no reader's place: a reader owns its offset and
stores it with what it made of the events, so that both move in one step.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from twotower.data.events import Event, EventColumns, IdKinds, kinds_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Appended", "Bounds", "EventLog", "Fate"]

_POLL_S: Final = 0.01


class Fate(IntEnum):
    """What became of an event that was appended."""

    STORED = 0
    DUPLICATE = 1
    """The same event is stored already, or came earlier in the same call."""
    CONFLICT = 2
    """Another event is stored under its event ID; this one is not."""
    TOO_MANY_NAMES = 3
    """It names one outcome or stage more than a log can tell apart; it is not stored."""


class Appended(NamedTuple):
    """The answer to one append."""

    end: int
    """The log's end after it."""
    fates: tuple[Fate, ...]
    """What became of each event, in the order given."""


class Bounds(NamedTuple):
    """The offsets `[begin, end)` that can be read."""

    begin: int
    end: int


class EventLog(ABC):
    """Events in the order in which they were stored. Safe for threads; several processes may
    read one and append to one at the same time."""

    @abstractmethod
    def append(self, events: Sequence[Event], received_ms: int) -> Appended:
        """Store what is new of `events`; when this returns, it survives a power cut.

        Callers that come while another is being written share one write.

        Args:
            events: their IDs of the project's kinds; see `twotower.data.events.fit_ids`.
            received_ms: when they arrived, by this machine's clock.

        Raises:
            DataError: an ID is not of the log's kind; nothing of this call was stored.
            NotReady: the disk is full or fails. Nothing was acknowledged; sending the same again
                is right whether or not it was stored.
        """

    @abstractmethod
    def read(self, start: int, limit: int, *, with_requests: bool = True) -> EventColumns:
        """Return the events from offset `start` on: at least one where there is one, at most
        `limit`; none where `start` is the end.

        Without requests `request_key` may be `NO_REQUEST` throughout, which is several times as
        fast: a reader inside a serving process takes the interpreter from nobody.

        Raises:
            LineageError: `start` was forgotten, or lies beyond the end; both are named.
            CorruptArtifact: stored bytes were altered; the offset is named.
        """

    @abstractmethod
    def read_events(self, start: int, limit: int) -> list[Event]:
        """Return the same events as they were sent; slower, for people and for tests."""

    @abstractmethod
    def bounds(self) -> Bounds:
        """Return the oldest offset that can be read and the offset after the last."""

    @abstractmethod
    def forget(self, before: int) -> int:
        """Remove events with offsets below `before`, as many as the engine can, never another.

        The newest events may be kept longer. Their IDs may be stored again afterwards.

        Returns:
            The oldest offset that can still be read.
        """

    def end(self) -> int:
        """Return the offset after the last event: the number of events ever stored."""
        return self.bounds().end

    @property
    def id_kinds(self) -> IdKinds | None:
        """What the log's IDs are; None before the first event, which decides it."""
        first = self.read_events(self.bounds().begin, 1)
        return kinds_of(first[0]) if first else None

    def close(self) -> None:  # noqa: B027
        """Release what is open; the log itself stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def wait(
        self, start: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> bool:
        """Return True as soon as an event at `start` is stored, by whichever process; False
        when there is none after `timeout_s`."""
        give_up_at_s = clock() + timeout_s
        while self.end() <= start:
            remaining_s = give_up_at_s - clock()
            if remaining_s <= 0:
                return False
            time.sleep(min(_POLL_S, remaining_s))
        return True
