"""`twotower status`: how everything stands, on one screen."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

import typer

from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.cli.output import console, emit_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from twotower.runtime.nights import NightRecord
    from twotower.runtime.observing import ProjectState
    from twotower.runtime.serving_state import ServedByWorker
    from twotower.runtime.status_file import ProcessStatus

__all__ = ["register"]

_STYLES: Final = {"live": "green", "running": "green", "refused": "yellow", "failed": "bold red"}
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(status)


def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show what is live and how fresh, how far each part has come, what runs, the last nights.

    Example: twotower status
    """
    from twotower.config import load_project
    from twotower.runtime.observing import observe

    project = load_project(config)
    state = observe(project)
    if as_json:
        emit_json(state)
        return
    zone = ZoneInfo(project.time_zone)
    console.print(_state_table(state, zone))
    _show_processes(state)
    if state.nights:
        console.print(_night_table(state.nights, zone))


def _state_table(state: ProjectState, zone: ZoneInfo) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, title=state.name, title_justify="left")
    for name, words in _lines(state, zone):
        table.add_row(name, escape(words))
    for name, words in state.problems.items():
        table.add_row(f"[bold red]{name}[/]", f"[red]{escape(words)}[/]")
    return table


def _lines(state: ProjectState, zone: ZoneInfo) -> Iterator[tuple[str, str]]:
    yield "live generation", _live_words(state, zone)
    if (delta := state.deltas) is not None:
        words = f"{delta.users:,} users, {delta.items:,} items, {_span(delta.age_s)} old"
        yield "newest delta", f"{delta.sequence}: {words}"
    else:
        yield "newest delta", "none over the live generation"
    yield "served", _served_words(state)
    fresh = state.freshness_s
    yield "freshness", "nothing is served" if fresh is None else f"{_span(fresh)} behind"
    log = state.event_log
    yield "event log", "none" if log is None else f"offsets {log.begin:,} to {log.end:,}"
    yield "join", _join_words(state, zone)
    if (increments := state.increments) is not None:
        words = f"published up to example {increments.through_offset:,}"
        yield "increments", f"{words}, {increments.lag_examples:,} behind"
    else:
        yield "increments", "nothing published over the live generation"
    if (stop := state.increments_stopped) is not None:
        when = _moment(stop.at_ms, zone)
        yield "increments stopped", f"{when}, at example {stop.offset:,}: {stop.reason}"
    used = ", ".join(f"{name} {count:,}" for name, count in state.disk.used_bytes.items())
    yield "disk", f"{state.disk.free_bytes:,} bytes free; used: {used or 'nothing'}"
    yield "nights", _nights_words(state, zone)


def _live_words(state: ProjectState, zone: ZoneInfo) -> str:
    live = state.live
    if live is None:
        return "none; make one with: twotower full"
    trained = live.through_day or "the history"
    cut = f", cut {_moment(live.cut_ms, zone)}" if live.cut_ms else ""
    return f"{live.generation}, activation {live.sequence}, trained through {trained}{cut}"


def _served_words(state: ProjectState) -> str:
    """Say what the workers answer from, together where they agree."""
    if (serving := state.serving) is None:
        return "no server listens"
    found = sorted({_worker_words(worker) for worker in serving.workers})
    return f"{serving.status}: {len(serving.workers)} workers, {'; '.join(found)}"


def _worker_words(worker: ServedByWorker) -> str:
    generation = worker.generation or "nothing loaded"
    delta = f", delta {worker.delta}" if worker.delta is not None else ""
    problem = f" ({worker.problem})" if worker.problem else ""
    return f"{worker.state} {generation}{delta}{problem}"


def _join_words(state: ProjectState, zone: ZoneInfo) -> str:
    join = state.join
    if join is None:
        return "nothing was joined"
    lag = "" if join.lag_events is None else f", {join.lag_events:,} behind"
    mark = "no watermark yet"
    if join.watermark_ms is not None:
        mark = f"watermark {_moment(join.watermark_ms, zone)}"
    cut = f"; last complete day {join.last_cut}" if join.last_cut else ""
    return (
        f"joined up to event {join.event_offset:,}{lag}; {mark}; "
        f"examples {join.examples_begin:,} to {join.examples_end:,}{cut}"
    )


def _nights_words(state: ProjectState, zone: ZoneInfo) -> str:
    night = state.up.night if state.up and state.is_up else None
    if night is None:
        return "not scheduled by a supervisor"
    words = f"next from {_moment(night.next_due_at_ms, zone)}"
    if night.running is not None:
        return f"{night.running} of {night.day} runs, pid {night.pid}; {words}"
    waits = f"{night.waits_for} is due and not complete yet; " if night.waits_for else ""
    return f"{waits}{words}"


def _show_processes(state: ProjectState) -> None:
    from rich.table import Table

    up = state.up
    if up is None or not state.is_up:
        was_killed = up is not None and up.state != "stopped"
        ended = "; the last one was killed" if was_killed else ""
        console.print(f"[bold red]no supervisor runs[/]{ended}: start one with twotower up")
        return
    since = _span((state.now_ms - up.started_at_ms) / 1000)
    title = f"supervisor {up.state}, pid {up.pid}, up {since}"
    columns = ("process", "", "pid", "up", "restarts", "last exit")
    table = Table(*columns, title=title, title_justify="left")
    for process in up.processes:
        style = _STYLES.get(process.state, "bold red")
        table.add_row(process.name, f"[{style}]{process.state}[/]", *_cells(process, state.now_ms))
    console.print(table)


def _cells(process: ProcessStatus, now_ms: int) -> tuple[str, ...]:
    started = process.started_at_ms if process.pid is not None else None
    up = "" if started is None else _span((now_ms - started) / 1000)
    return (str(process.pid or ""), up, str(process.restarts), process.last_exit or "")


def _night_table(nights: list[NightRecord], zone: ZoneInfo) -> Table:
    from rich.table import Table

    table = Table("night of", "outcome", "generation", "attempts", "took", "began", "exit")
    for night in nights:
        style = _STYLES.get(night.outcome, "yellow")
        ended = night.ended_at_ms
        table.add_row(
            night.day,
            f"[{style}]{night.outcome}[/]",
            night.generation or "",
            str(night.attempts),
            "" if ended is None else _span((ended - night.started_at_ms) / 1000),
            _moment(night.started_at_ms, zone),
            night.exit or "",
        )
    return table


def _moment(ms: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=zone).isoformat(sep=" ", timespec="seconds")


def _span(seconds: float) -> str:
    """Return a duration in its two largest units, as `3 h 12 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    left, words = round(seconds), list[str]()
    for size, unit in _UNITS:
        if left >= size and len(words) < 2:
            words.append(f"{left // size} {unit}")
            left %= size
    return " ".join(words)
