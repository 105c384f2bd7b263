"""The command replay: an imported log through the whole loop in simulated time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.cli.output import console, emit_json, show_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from twotower.replay.report import ReplayReport

__all__ = ["print_replay", "register", "replay_table"]

_BARS: Final = " ▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    """Add the command of this group."""
    app.command("replay")(replay)


def replay(
    first: Annotated[
        str | None,
        typer.Option("--first", metavar="DAY", help="First live day; the last day if left out."),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--last", metavar="DAY", help="Last live day; the last imported if left out."),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare only these; may be repeated."),
    ] = None,
    every: Annotated[
        list[float] | None,
        typer.Option(metavar="MINUTES", help="Publish interval; may be repeated. 30 if left out."),
    ] = None,
    hours: Annotated[
        float, typer.Option(metavar="HOURS", help="Window of the list popularity_hours.")
    ] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw recall over time into this PNG file.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Run days of the log through the whole pipeline as if they happened now, and compare.

    Example: twotower replay --first 2022-05-06 --last 2022-05-08 --every 30 --plot recall.png
    """
    from twotower.config import load_project
    from twotower.replay.plot import plot_recall
    from twotower.replay.run import ReplayRequest, run_replay

    project = load_project(config)
    request = ReplayRequest(
        first=first,
        last=last,
        strategies=tuple(strategy or ()),
        publish_every_s=tuple(minutes * 60 for minutes in every or (30.0,)),
        popularity_window_s=hours * 3600,
    )
    with show_progress() as progress:
        report = run_replay(project, request, progress=progress)
    if plot is not None:
        plot_recall(
            plot,
            report.bucket_starts_ms,
            report.recall_at_50_over_time,
            k=50,
            time_zone=project.time_zone,
            title=f"{project.name}: {report.days[0]} to {report.days[-1]}",
        )
    if as_json:
        emit_json(report)
        return
    print_replay(report, console)


def print_replay(report: ReplayReport, console: Console) -> None:
    """Print the table of a replay and recall over time."""
    console.print(replay_table(report))
    for line in _freshness_lines(report):
        console.print(line)
    if report.answers_checked:
        console.print(
            f"{report.answers_checked:,} of these clicks were put to the retriever too: "
            f"{report.answers_differing} of its answers had the item elsewhere."
        )
    _print_over_time(report, console)


def replay_table(report: ReplayReport) -> Table:
    """Return the strategies of a replay side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=f"{report.clicks:,} clicks of {report.days[0]} to {report.days[-1]}, "
        f"all from {report.base}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("strategy", no_wrap=True)
    table.add_column("recall@50", justify="right")
    table.add_column(f"less {report.reference}", justify="right")
    for name, found in report.strategies.items():
        table.add_row(name, f"{found.recall_at_50:.4f}", found.reading)
    return table


def _freshness_lines(report: ReplayReport) -> Iterator[str]:
    for name, found in report.strategies.items():
        if found.freshness_s is None:
            continue
        p50, p99 = (found.freshness_s[name] / 60 for name in ("p50", "p99"))
        deltas = f"{found.deltas_published:,} deltas"
        yield f"{name}: {deltas}, fresh within {p50:.0f} min (median), {p99:.0f} min (99 %)"


def _print_over_time(report: ReplayReport, console: Console) -> None:
    """Print recall over time, a line of bars a strategy."""
    lines = report.recall_at_50_over_time
    known = [share for shares in lines.values() for share in shares if share is not None]
    top = max(known, default=0.0) or 1.0
    width = max(map(len, lines))
    console.print(f"recall@50 over time, {report.bucket_s / 3600:g} h a bar, 0 to {top:.2f}:")
    for name, shares in lines.items():
        bars = "".join(
            _BARS[0 if share is None else max(1, round(share / top * (len(_BARS) - 1)))]
            for share in shares
        )
        console.print(f"  {name:<{width}}  {bars}", markup=False)
