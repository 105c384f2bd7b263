"""`twotower join`: events of the log become labelled examples, once or as they come."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table

from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption
from twotower.cli.output import console, emit_json, show_progress

if TYPE_CHECKING:
    from twotower.config import Project
    from twotower.data.example_log import ExampleManifest
    from twotower.data.label_join.joiner import Joiner

__all__ = ["join", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(join)


def join(
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what comes, until SIGTERM or Ctrl-C.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Join impressions with their outcomes to labelled examples; each event once.

    Example: twotower join --follow
    """
    from twotower.config import load_project
    from twotower.data.days import require_polars

    require_polars("the label join")
    project = load_project(config)
    if follow and not dry_run:
        _follow(project, as_json)
        return
    found = _join_once(project, commit=not dry_run)
    if as_json:
        emit_json(found)
        return
    _show(found)


def _join_once(project: Project, *, commit: bool) -> dict[str, Any]:
    from twotower.data.event_log import open_event_log
    from twotower.data.label_join.joiner import open_joiner

    with (
        open_event_log(project.data_path, project.event_log) as log,
        open_joiner(project.data_path, log, project.join, project.time_zone) as joiner,
        show_progress() as progress,
    ):
        if joiner is None:
            return {"joined_events": 0, "emitted_examples": 0, "undecided_events": 0}
        before = joiner.manifest
        progress.begin("join", log.end() - before.event_offset, unit="events")
        while num_events := joiner.join_next(int(time.time() * 1000), commit=commit):
            progress.advance(num_events)
        progress.end()
        return _report(before, joiner)


def _report(before: ExampleManifest, joiner: Joiner) -> dict[str, Any]:
    after = joiner.manifest
    fields = ("event_offset", "begin", "end", "watermark_ms", "newest_event_time_ms", "cuts")
    values = msgspec.to_builtins(after)
    return {
        "joined_events": after.event_offset - before.event_offset,
        "emitted_examples": after.end - before.end,
        "undecided_events": joiner.num_undecided,
        **{name: values[name] for name in (*fields, "counts", "dropped")},
    }


def _show(found: dict[str, Any]) -> None:
    console.print(
        f"{found['joined_events']:,} events joined, {found['emitted_examples']:,} examples "
        f"emitted; {found['undecided_events']:,} events wait for the watermark"
    )
    if not found.get("counts"):
        return
    table = Table("fate", "events so far")
    for fate, events in found["counts"].items():
        table.add_row(fate, f"{events:,}")
    console.print(table)
    if found["cuts"]:
        day, offset = max(found["cuts"].items())
        console.print(f"the last day that ended is {day}, at example {offset:,}")


def _follow(project: Project, as_json: bool) -> None:
    from twotower.data.event_log import open_event_log
    from twotower.data.label_join.joiner import follow

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    def tell(num_events: int, manifest: ExampleManifest) -> None:
        if as_json:
            emit_json(
                {
                    "joined_events": num_events,
                    "event_offset": manifest.event_offset,
                    "end": manifest.end,
                }
            )
            return
        console.print(
            f"{num_events:,} events to {manifest.event_offset:,}; examples to {manifest.end:,}"
        )

    with open_event_log(project.data_path, project.event_log) as log:
        follow(
            project.data_path,
            log,
            project.join,
            project.time_zone,
            stopping=stopping,
            at_batch=tell,
        )
