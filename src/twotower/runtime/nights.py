"""Which night is to be run, and what became of the last ones: `runtime/nights.json`.

A night is decided by what there is, not by the moment at which a clock struck: once a day has
ended and its local time has come, the newest day whose examples are complete and that the live
generation has not trained is trained, together with all before it. A night that was missed while
nothing ran is so made up for; one that a gate refused, or that was rolled back, is trained with
the next one and not tried again alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from twotower.data.joined_days import open_days
from twotower.errors import NotReady
from twotower.publishing.store import ModelStore
from twotower.runtime.files import read_json, runtime_folder, write_json

__all__ = ["NightBook", "NightRecord", "Outcome", "night_to_run", "trainable_days", "trained_day"]

Outcome = Literal["running", "live", "refused", "failed", "interrupted"]
_FORMAT_VERSION: Final = 1
_NAME: Final = "nights.json"
_KEPT: Final = 60


class NightRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One night: what was tried, and what came of it."""

    day: str
    """The last local day that it trained, or was to train."""
    outcome: Outcome
    """`interrupted`: the supervisor stopped or died; it goes on from its last save."""
    attempts: int
    started_at_ms: int
    """Of the last attempt."""
    ended_at_ms: int | None = None
    exit: str | None = None
    """Exit code or signal of the last attempt."""
    generation: str | None = None
    """What it published, live or refused."""

    def changed(self, **fields: Any) -> NightRecord:
        """Return a copy with other values."""
        return msgspec.structs.replace(self, **fields)


class _Nights(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int = _FORMAT_VERSION
    nights: list[NightRecord] = []


class NightBook:
    """The records of the last nights, oldest first, durable after every change."""

    def __init__(self, data_path: Path) -> None:
        """Read what is there.

        Raises:
            CorruptArtifact: the file is damaged or of a newer format.
        """
        self._path = runtime_folder(data_path) / _NAME
        found = read_json(self._path, _Nights, _FORMAT_VERSION)
        self._nights = {night.day: night for night in (found.nights if found else ())}

    def all(self) -> list[NightRecord]:
        """Return the records, oldest day first."""
        return [self._nights[day] for day in sorted(self._nights)]

    def of(self, day: str) -> NightRecord | None:
        """Return the record of a day's night, None where it was never tried."""
        return self._nights.get(day)

    def write(self, record: NightRecord) -> None:
        """Store a record in place of the one of its day."""
        self._nights[record.day] = record
        self._nights = dict(sorted(self._nights.items())[-_KEPT:])
        write_json(self._path, _Nights(nights=self.all()))


def night_to_run(
    last_day: str, days: Sequence[str], trained: str | None, book: NightBook, max_attempts: int
) -> str | None:
    """Return the day whose night is to be run now, None where there is nothing to do.

    Args:
        last_day: the last day that may be trained yet.
        days: complete days, imported or cut by the join.
        trained: the last day that the live generation has trained.
        book: what was tried before.
        max_attempts: a night that failed so often is left to the next one.
    """
    pending = [day for day in days if day <= last_day and day > (trained or "")]
    if not pending:
        return None
    record = book.of(max(pending))
    if record is not None:
        is_over = record.outcome in ("live", "refused")
        if is_over or (record.outcome == "failed" and record.attempts >= max_attempts):
            return None
    return max(pending)


def trainable_days(data_path: Path) -> tuple[str, ...]:
    """Return the local days whose examples are complete, imported or cut by the join, in order.

    Raises:
        CorruptArtifact: a manifest is damaged.
        LineageError: import and example log hold IDs of different kinds.
    """
    try:
        return open_days(data_path).days
    except NotReady:
        return ()


def trained_day(data_path: Path) -> str | None:
    """Return the last day that the live generation has trained, None where there is none.

    Raises:
        CorruptArtifact: what is live cannot be known.
    """
    store = ModelStore(data_path)
    return store.open(verify=False).manifest.window.through_day if store.live() else None
