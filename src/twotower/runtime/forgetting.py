"""Which events and examples nobody can need any more, and removing them.

Kept is what the live generation needs to begin its increments anew and to train the next night:
everything after its cut; the same for its parent and for the generation that a roll-back returns
to; whatever the label join has not read; and the newest days, by a setting.
"""

from __future__ import annotations

from typing import Final

import msgspec

from twotower.config import Project
from twotower.data.days import day_limits_ms
from twotower.data.event_log import EventLog, open_event_log
from twotower.data.example_log import ExampleLog
from twotower.data.example_log.manifest import ExampleManifest
from twotower.data.example_log.writer import forget_examples
from twotower.publishing.manifest import Window
from twotower.publishing.store import ModelStore

__all__ = ["Forgotten", "forget_old", "needed_windows"]

_DAY_MS: Final = 86_400_000
_MARGIN_MS: Final = 3_600_000
"""An event may be received so long before its own time, by a producer's clock that is fast."""


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed, or would have been."""

    dry_run: bool
    needed_by: list[str]
    """Generations whose increments may begin anew."""
    examples_before: int
    """Offset: older examples are not needed; whole shards of them are removed."""
    examples_begin: int
    """The oldest example that can still be read."""
    events_before: int
    events_begin: int


def forget_old(project: Project, now_ms: int, *, dry_run: bool = False) -> Forgotten:
    """Remove the events and the examples that nobody can need.

    Args:
        project: whose logs.
        now_ms: from which the days of `runtime.keep_event_days` count back.
        dry_run: only say what would be removed.

    Raises:
        NotReady: nothing is live or nothing was joined: then everything is needed.
        CorruptArtifact: what is live cannot be known; nothing is removed.
    """
    windows = needed_windows(ModelStore(project.data_path))
    examples = ExampleLog.open(project.data_path)
    oldest_ms = now_ms - round(project.runtime.keep_event_days * _DAY_MS)
    examples_before = min(
        _last_cut(examples.manifest, project.time_zone, oldest_ms),
        *(window.example_offset for window in windows.values()),
    )
    with open_event_log(project.data_path, project.event_log) as events:
        cuts_ms = [window.cut_ms for window in windows.values()]
        received_ms = min(oldest_ms, *cuts_ms) - _MARGIN_MS
        events_before = min(examples.event_offset, _first_received(events, received_ms))
        begins = (examples.begin, events.bounds().begin)
        if not dry_run:
            begins = (
                forget_examples(project.data_path, examples_before),
                events.forget(events_before),
            )
    return Forgotten(
        dry_run=dry_run,
        needed_by=list(windows),
        examples_before=examples_before,
        examples_begin=begins[0],
        events_before=events_before,
        events_begin=begins[1],
    )


def needed_windows(store: ModelStore) -> dict[str, Window]:
    """Return the windows of the generations that may be live soon without being made anew.

    Raises:
        NotReady: nothing is live.
        CorruptArtifact: what is live, or its parent, cannot be known.
    """
    live, activation = store.open_live(verify=False)
    wanted = [live.name, live.manifest.parent, activation.previous]
    names = [name for name in dict.fromkeys(wanted) if name in store.names()]
    return {name: store.open(name, verify=False).manifest.window for name in names if name}


def _last_cut(manifest: ExampleManifest, time_zone: str, until_ms: int) -> int:
    """Return the cut of the last local day that had ended at a moment."""
    ended = [
        offset
        for day, offset in manifest.cuts.items()
        if day_limits_ms(day, time_zone)[1] <= until_ms
    ]
    return max(ended, default=manifest.begin)


def _first_received(events: EventLog, received_ms: int) -> int:
    """Return the offset of the first event that was received at or after a moment, by bisection.

    A log is in the order of its receipt but for the clock's corrections, which the margin covers.
    """
    low, high = events.bounds()
    while low < high:
        middle = (low + high) // 2
        if int(events.read(middle, 1).received_ms[0]) < received_ms:
            low = middle + 1
        else:
            high = middle
    return low
