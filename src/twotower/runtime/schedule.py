"""When a night is due: a local time of every day, by APScheduler's calendar.

Local time jumps: a time that the clocks leave out in spring is due as much later as they jump, one
that they repeat in autumn is due at its first coming. The calendar is asked for one local day at a
time: asked for the next time across a jump, APScheduler 3.11 leaves out a day whose time is
midnight. Kept apart from what is done then, and without a clock of its own, so that a test can
live through a year.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from twotower.errors import MissingExtra

__all__ = ["Due", "NightSchedule"]


class Due(NamedTuple):
    """A moment from which a night may run."""

    at_s: float
    """Seconds since 1970."""
    day: str
    """The local day that had ended then: the last one that this night may train."""


class NightSchedule:
    """The same local time of every day."""

    def __init__(self, at: str, time_zone: str) -> None:
        """Name the time.

        Args:
            at: hours and minutes, `03:00`.
            time_zone: IANA name.

        Raises:
            MissingExtra: APScheduler is not installed.
        """
        try:
            from apscheduler.triggers.cron import CronTrigger
        except ImportError as error:
            raise MissingExtra("apscheduler", "up", "the schedule of the nights") from error
        hour, minute = at.split(":")
        self._zone = ZoneInfo(time_zone)
        self._trigger = CronTrigger(
            hour=int(hour), minute=int(minute), second=0, timezone=self._zone
        )

    def last(self, now_s: float) -> Due:
        """Return the last moment that is not after `now_s`."""
        today = self._today(now_s)
        dues = [self._due_on(today - timedelta(days=n)) for n in range(3)]
        return next(due for due in dues if due.at_s <= now_s)

    def next(self, now_s: float) -> Due:
        """Return the first moment after `now_s`."""
        today = self._today(now_s)
        dues = [self._due_on(today + timedelta(days=n)) for n in range(3)]
        return next(due for due in dues if due.at_s > now_s)

    def _today(self, now_s: float) -> date:
        return datetime.fromtimestamp(now_s, tz=self._zone).date()

    def _due_on(self, today: date) -> Due:
        midnight = datetime(today.year, today.month, today.day, tzinfo=self._zone)
        fire = self._trigger.get_next_fire_time(None, midnight)
        return Due(fire.timestamp(), (today - timedelta(days=1)).isoformat())
