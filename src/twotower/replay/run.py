"""One call for `twotower replay`: stage a project, let its last days happen, report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.errors import ConfigError, NotReady, suggestion
from twotower.progress import SILENT, Progress
from twotower.publishing.store import ModelStore
from twotower.replay.lists import hours_list, previous_day_list
from twotower.replay.live import LiveScores
from twotower.replay.nights import ReplayedLog
from twotower.replay.pipeline import Played, replay_pipeline
from twotower.replay.report import ReplayReport, report_of
from twotower.replay.staging import stage_project
from twotower.replay.strategies import STRATEGIES, Strategy
from twotower.replay.stream import LiveStream, open_stream

__all__ = ["LISTS", "ReplayRequest", "run_replay"]

LISTS: Final = ("popularity_previous_day", "popularity_hours")


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `run_replay` compares."""

    first: str | None = None
    """First live day; `last` where left out."""
    last: str | None = None
    """Last live day; the last imported one where left out."""
    strategies: tuple[str, ...] = ()
    """Names of `STRATEGIES` and `LISTS`; all where left out."""
    publish_every_s: tuple[float, ...] = (1800.0,)
    """Each interval is a strategy of its own, where it increments."""
    popularity_window_s: float = 3600.0
    """Of the list `popularity_hours`, which is made anew at the first publish interval."""


def run_replay(
    project: Project, request: ReplayRequest, *, progress: Progress = SILENT
) -> ReplayReport:
    """Let the last days of an import happen again, and return how each strategy predicted them.

    Everything is written into a temporary folder, which is removed: the project is only read.

    Raises:
        NotReady: nothing is imported, or a package is not installed.
        ConfigError: a strategy has no such name.
        DataError: no imported day lies before the first live one.
        GateRefused: a night did not pass a gate, or the loss of increments exploded.
    """
    began = time.perf_counter()
    _check_names(request.strategies)
    log = ReplayedLog(ImportedData.open(project.data_path))
    last = request.last or _last_day(log)
    stream = open_stream(log, request.first or last, last, project.model.history_length)
    strategies = _strategies(request)
    played = Played({}, 0, 0)
    with tempfile.TemporaryDirectory(prefix="twotower-replay-") as folder:
        staged = stage_project(project, Path(folder), stream.days[0], progress=progress)
        base = ModelStore(staged.data_path).open().name
        if strategies:
            played = replay_pipeline(staged, log, stream, strategies, progress=progress)
    scores = played.scores | _lists(request, log, stream)
    return report_of(
        stream,
        scores,
        base=base,
        reference=next(iter(scores)),
        answers_checked=played.answers_checked,
        answers_differing=played.answers_differing,
        publish_every_s={name: strategy.publish_every_s for name, strategy in strategies.items()},
        seconds=time.perf_counter() - began,
    )


def _last_day(log: ReplayedLog) -> str:
    if not log.data.days:
        raise NotReady("expected imported days to replay, found none; run: twotower import")
    return log.data.days[-1]


def _check_names(names: tuple[str, ...]) -> None:
    known = [*STRATEGIES, *LISTS]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"unknown strategy {name!r}; known: {', '.join(known)}{suggestion(name, known)}"
            )


def _strategies(request: ReplayRequest) -> Mapping[str, Strategy]:
    """Return the strategies by name; those of further intervals say theirs."""
    chosen = {}
    for name, strategy in STRATEGIES.items():
        if request.strategies and name not in request.strategies:
            continue
        intervals = request.publish_every_s if strategy.increments else request.publish_every_s[:1]
        for every_s in intervals:
            is_first = every_s == request.publish_every_s[0]
            full_name = name if is_first else f"{name}, {every_s / 60:g} min"
            chosen[full_name] = msgspec.structs.replace(strategy, publish_every_s=every_s)
    return chosen


def _lists(request: ReplayRequest, log: ReplayedLog, stream: LiveStream) -> dict[str, LiveScores]:
    wanted = request.strategies or LISTS
    lists = {}
    if "popularity_previous_day" in wanted:
        lists["popularity_previous_day"] = previous_day_list(log, stream)
    if "popularity_hours" in wanted:
        lists["popularity_hours"] = hours_list(
            log,
            stream,
            window_s=request.popularity_window_s,
            refresh_s=request.publish_every_s[0],
        )
    return lists
