"""The days that a full update trains: from the parent's cut to the end of one day."""

from __future__ import annotations

from datetime import date
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


def day_number(day: str) -> int:
    """Return a local day as days since 1970."""
    return date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()


def next_day(data: ImportedData, parent: Window) -> str:
    """Return the first imported day after what the parent has trained.

    Raises:
        LineageError: there is none.
    """
    for day in data.days:
        if parent.through_day is None or day > parent.through_day:
            return day
    raise LineageError(
        f"expected a day after {parent.through_day}, the last that was trained; found none "
        "imported; the live generation is unchanged: import newer events first"
    )


def open_window(data: ImportedData, parent: Window, through: str) -> WindowEvents:
    """Read the days after the parent's cut up to and with `through`.

    A night that was refused, rolled back or left out is so trained with the next one.

    Raises:
        LineageError: `through` is not imported, or was trained already.
    """
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
    after = parent.through_day or ""
    days = [day for day in data.days if after < day <= through]
    entries = [data.day_entry(day) for day in days]
    digest = sum(int(entry.positives_digest, 16) for entry in entries) % 2**64
    return WindowEvents(
        window=Window(from_day=days[0], through_day=through, cut_ms=entries[-1].end_ms),
        start_ms=entries[0].start_ms,
        events=_concatenate([data.day(day) for day in days]),
        num_positives=sum(entry.positives for entry in entries),
        digest=f"{digest:016x}",
    )


def _concatenate(days: list[DayEvents]) -> DayEvents:
    stages = [day.stage for day in days if day.stage is not None]
    return DayEvents(
        event_id=np.concatenate([day.event_id for day in days]),
        user_id=np.concatenate([day.user_id for day in days]),
        item_id=np.concatenate([day.item_id for day in days]),
        event_time_ms=np.concatenate([day.event_time_ms for day in days]),
        outcome=np.concatenate([day.outcome for day in days]),
        stage=np.concatenate(stages) if len(stages) == len(days) else None,
    )


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
