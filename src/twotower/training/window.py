"""The days that a full update trains: from the parent's cut to the end of one day.

A night that was refused, rolled back or left out is so trained with the next one. Every local day
between is trained by exactly one run of a lineage, or left out by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import reduce
from typing import NamedTuple

import numpy as np

from twotower.checkpoint import Window
from twotower.data.days import DayEvents, ImportedData
from twotower.errors import ConfigError, LineageError
from twotower.model.settings import ModelSettings

__all__ = ["WindowEvents", "check_shapes", "day_number", "next_day", "open_window"]


class WindowEvents(NamedTuple):
    """Every event of a window, in the order of event time within each day."""

    window: Window
    start_ms: int
    events: DayEvents
    num_positives: int
    digest: str
    """Order-free digest of the positives' event IDs, as the import counted them."""
    days: tuple[str, ...]


def day_number(day: str) -> int:
    """Return a local day as days since 1970."""
    return date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()


def next_day(data: ImportedData, parent: Window, skip: Sequence[str] = ()) -> str:
    """Return the first imported day after what the parent has trained and what is skipped.

    Raises:
        LineageError: there is none.
    """
    for day in data.days:
        if (parent.through_day is None or day > parent.through_day) and day not in skip:
            return day
    raise LineageError(
        f"expected a day after {parent.through_day}, the last that was trained; found none "
        "imported; the live generation is unchanged: import newer events first"
    )


def open_window(
    data: ImportedData, parent: Window, through: str, skip: Sequence[str] = ()
) -> WindowEvents:
    """Read the days after the parent's cut up to and with `through`, less those in `skip`.

    Raises:
        LineageError: `through` is not imported, or was trained already; a day before it is not
            imported and not skipped; a skipped day is not in the window; the first day does not
            begin at the parent's cut.
    """
    days = _days_to_train(data, parent, through, skip)
    entries = [data.day_entry(day) for day in days]
    digest = sum(int(entry.positives_digest, 16) for entry in entries) % 2**64
    return WindowEvents(
        window=Window(
            from_day=days[0],
            through_day=through,
            cut_ms=entries[-1].end_ms,
            skipped=tuple(sorted(skip)),
            example_offset=data.example_offset(through),
        ),
        start_ms=entries[0].start_ms,
        events=_concatenate([data.day(day) for day in days]),
        num_positives=sum(entry.positives for entry in entries),
        digest=f"{digest:016x}",
        days=tuple(days),
    )


def _days_to_train(
    data: ImportedData, parent: Window, through: str, skip: Sequence[str]
) -> list[str]:
    if through not in data.days:
        raise LineageError(
            f"expected an imported day, found {through}; imported are {data.days[0]} to "
            f"{data.days[-1]}; the live generation is unchanged"
        )
    if parent.through_day is not None and through <= parent.through_day:
        raise LineageError(
            f"expected a day after {parent.through_day}, found {through}, which this lineage has "
            "trained already; each day is trained once; the live generation is unchanged"
        )
    first = min(data.days) if parent.through_day is None else _day_after(parent.through_day)
    window = _days_between(first, through)
    _check_skipped(skip, window, through)
    days = [day for day in window if day not in skip]
    if missing := [day for day in days if day not in data.days]:
        raise LineageError(
            f"expected every day from {first} to {through}, found no events of "
            f"{', '.join(missing)}; nothing was trained and the live generation is unchanged: "
            f"import them, or leave them out for good with --skip {' --skip '.join(missing)}"
        )
    _check_joint(data, parent, days[0])
    return days


def _check_skipped(skip: Sequence[str], window: Sequence[str], through: str) -> None:
    if wrong := sorted(day for day in skip if day not in window or day == through):
        raise LineageError(
            f"expected to skip days from {window[0]} to the one before {through}, found "
            f"{', '.join(wrong)}; nothing was trained and the live generation is unchanged"
        )


def _check_joint(data: ImportedData, parent: Window, first: str) -> None:
    """Refuse a first day that does not begin where the parent's knowledge ends."""
    start_ms = data.day_entry(first).start_ms
    if parent.through_day is None or first != _day_after(parent.through_day):
        return
    if start_ms != parent.cut_ms:
        what = "overlap" if start_ms < parent.cut_ms else "leave a gap"
        raise LineageError(
            f"expected {first} to begin at the parent's cut, {parent.cut_ms} ms, found "
            f"{start_ms} ms: the windows would {what}; was time_zone changed? nothing was trained "
            "and the live generation is unchanged: set it back, or start a lineage of its own"
        )


def _day_after(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def _days_between(first: str, last: str) -> list[str]:
    start = date.fromisoformat(first)
    num_days = day_number(last) - day_number(first) + 1
    return [(start + timedelta(days=n)).isoformat() for n in range(num_days)]


def _concatenate(days: list[DayEvents]) -> DayEvents:
    """Return the events of several days in one order of time.

    A day column may put an event behind the midnight of its date, so the days' own orders do not
    simply follow one another.
    """
    events = reduce(DayEvents.followed_by, days)
    return events.take(np.lexsort((events.event_id, events.event_time_ms)))


def check_shapes(trained: ModelSettings, wanted: ModelSettings) -> None:
    """Refuse settings that the parent's parameters do not fit.

    Raises:
        ConfigError: a shape or the popularity coordinate changed.
    """
    for name in trained.__struct_fields__:
        if (found := getattr(wanted, name)) != (expected := getattr(trained, name)):
            raise ConfigError(
                f"expected model.{name} = {expected}, as the live generation was trained with, "
                f"found {found}; set it back, or start a lineage of its own in another data_dir"
            )
