"""How a project stands: what is live, how fresh it is, how far each part has come, what runs.

Everything is read from the files of the parts, and asked of the server if one listens; nothing is
started, made or locked, so it can be asked at any time, also while nothing runs. A part that cannot
be read says why and hides no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from twotower.config import Project
from twotower.data.example_log.manifest import ExampleManifest, examples_path
from twotower.data.example_log.manifest import read_manifest as read_examples
from twotower.durable import is_held
from twotower.errors import TwoTowerError
from twotower.increment_stop import IncrementStop, read_stop
from twotower.publishing.delta import DeltaManifest, newest_delta
from twotower.publishing.store import ModelStore
from twotower.runtime.disk import DiskState, disk_state
from twotower.runtime.files import LOCK, runtime_folder
from twotower.runtime.nights import NightBook, NightRecord
from twotower.runtime.serving_state import ServingState, ask_server
from twotower.runtime.status_file import RuntimeStatus, read_status

__all__ = [
    "DeltaState",
    "DiskState",
    "EventLogState",
    "IncrementState",
    "JoinState",
    "LiveState",
    "ProjectState",
    "observe",
]

_NIGHTS_SHOWN = 7
T = TypeVar("T")


class LiveState(msgspec.Struct, frozen=True, kw_only=True):
    """The live generation."""

    generation: str
    sequence: int
    """Of the activation."""
    activated_at: str
    through_day: str | None
    cut_ms: int
    """The end of the last day that it trained."""


class DeltaState(msgspec.Struct, frozen=True, kw_only=True):
    """The newest delta over the live generation."""

    sequence: int
    age_s: float
    """Since it was written."""
    users: int
    items: int
    newest_event_time_ms: int


class EventLogState(msgspec.Struct, frozen=True, kw_only=True):
    """The offsets that can be read."""

    begin: int
    end: int


class JoinState(msgspec.Struct, frozen=True, kw_only=True):
    """How far the label join has come."""

    event_offset: int
    lag_events: int | None
    """Events that were not joined yet; None where the event log cannot be read."""
    watermark_ms: int | None
    examples_begin: int
    examples_end: int
    last_cut: str | None
    """The last local day whose examples are complete."""


class IncrementState(msgspec.Struct, frozen=True, kw_only=True):
    """How far the deltas over the live generation have come."""

    through_offset: int
    """Of the joined examples: the first that no delta holds."""
    lag_examples: int


class ProjectState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything; a part that is not there is None."""

    name: str
    data_path: str
    now_ms: int
    is_up: bool
    """Whether a supervisor runs; without one, `up` is what the last one wrote."""
    live: LiveState | None
    freshness_s: float | None
    """Now, less the time of the newest event inside what is live."""
    deltas: DeltaState | None
    serving: ServingState | None
    """None where no server listens at the project's address."""
    event_log: EventLogState | None
    join: JoinState | None
    increments: IncrementState | None
    increments_stopped: IncrementStop | None
    """Why nothing more is learned over the live generation; None where it is."""
    up: RuntimeStatus | None
    nights: list[NightRecord]
    """The last ones, oldest first."""
    disk: DiskState
    problems: dict[str, str]
    """Why a part could not be read, by its name."""


def observe(project: Project, clock: Callable[[], float] = time.time) -> ProjectState:
    """Return how the project stands now."""
    data_path, now_ms = project.data_path, int(clock() * 1000)
    problems: dict[str, str] = {}

    def part(name: str, read: Callable[[], T | None]) -> T | None:
        try:
            return read()
        except (TwoTowerError, OSError) as error:
            problems[name] = str(error)
            return None

    live = part("live", lambda: _live(data_path))
    newest = part("deltas", lambda: newest_delta(data_path, live.generation) if live else None)
    stopped = part("increments", lambda: read_stop(data_path, live.generation) if live else None)
    examples = part("join", lambda: read_examples(examples_path(data_path)))
    events = part("event_log", lambda: _event_log(project))
    return ProjectState(
        name=project.name,
        data_path=str(data_path),
        now_ms=now_ms,
        is_up=is_held(runtime_folder(data_path) / LOCK),
        live=live,
        freshness_s=_freshness_s(live, newest, now_ms),
        deltas=_deltas(newest, now_ms) if newest else None,
        serving=part("serving", lambda: _serving(project)),
        event_log=events,
        join=_join(examples, events) if examples else None,
        increments=_increments(newest, examples),
        increments_stopped=stopped,
        up=part("up", lambda: read_status(data_path)),
        nights=(part("nights", lambda: NightBook(data_path).all()) or [])[-_NIGHTS_SHOWN:],
        disk=disk_state(data_path),
        problems=problems,
    )


def _live(data_path: Path) -> LiveState | None:
    store = ModelStore(data_path)
    if store.live() is None:
        return None
    generation, activation = store.open_live(verify=False)
    return LiveState(
        generation=generation.name,
        sequence=activation.sequence,
        activated_at=activation.activated_at,
        through_day=generation.manifest.window.through_day,
        cut_ms=generation.manifest.window.cut_ms,
    )


def _freshness_s(live: LiveState | None, newest: DeltaManifest | None, now_ms: int) -> float | None:
    """Count from the newest event of the last delta, or from the cut where no delta is newer."""
    if live is None:
        return None
    newest_ms = max(live.cut_ms, newest.span.newest_event_time_ms if newest else 0)
    return (now_ms - newest_ms) / 1000 if newest_ms else None


def _deltas(newest: DeltaManifest, now_ms: int) -> DeltaState:
    return DeltaState(
        sequence=newest.sequence,
        age_s=(now_ms - newest.created_at_ms) / 1000,
        users=newest.counts.get("users", 0),
        items=newest.counts.get("items", 0),
        newest_event_time_ms=newest.span.newest_event_time_ms,
    )


def _serving(project: Project) -> ServingState | None:
    settings = project.serving
    return ask_server(settings.host, settings.port) if settings.port else None


def _event_log(project: Project) -> EventLogState | None:
    """Read the bounds; a log that is not there is not made."""
    if not (project.data_path / "events").is_dir():
        return None
    from twotower.data.event_log import open_event_log

    with open_event_log(project.data_path, project.event_log) as log:
        begin, end = log.bounds()
    return EventLogState(begin=begin, end=end)


def _join(examples: ExampleManifest, events: EventLogState | None) -> JoinState:
    return JoinState(
        event_offset=examples.event_offset,
        lag_events=events.end - examples.event_offset if events else None,
        watermark_ms=examples.watermark_ms,
        examples_begin=examples.begin,
        examples_end=examples.end,
        last_cut=max(examples.cuts, default=None),
    )


def _increments(
    newest: DeltaManifest | None, examples: ExampleManifest | None
) -> IncrementState | None:
    if newest is None or examples is None:
        return None
    through = newest.span.through_offset
    return IncrementState(through_offset=through, lag_examples=examples.end - through)
