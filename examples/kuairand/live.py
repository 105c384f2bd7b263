"""The demo's live days: 6 to 8 May happen again, click by click, through the whole pipeline.

    python examples/kuairand/live.py --json live.json --plot live.png

Every strategy starts from the generation that learned 5 May. Needs the import and the nights of
`make demo`; trains what is missing otherwise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import msgspec
import score
from rich.console import Console

from twotower.cli.output import configure, show_progress
from twotower.cli.replay import print_replay
from twotower.config import Project
from twotower.replay.plot import plot_recall
from twotower.replay.report import ReplayReport
from twotower.replay.run import ReplayRequest, run_replay

__all__ = ["draw", "figures", "replay_live_days", "show_live_days"]

FIRST, LAST = "2022-05-06", "2022-05-08"
REQUEST: Final = ReplayRequest(
    first=FIRST, last=LAST, publish_every_s=(1800.0,), popularity_window_s=24 * 3600.0
)


def replay_live_days(project: Project) -> ReplayReport:
    """Let the live days happen in a temporary folder; the project is only read."""
    with show_progress() as progress:
        return run_replay(project, REQUEST, progress=progress)


def show_live_days(report: ReplayReport, console: Console) -> None:
    """Print what the strategies came to."""
    console.print(
        "\nCould one do only increments? 6 to 8 May happen again. Events are stored, joined\n"
        "and learned from as they come, a delta is served every 30 minutes, and at night a\n"
        "full update takes over. A click is scored before anything learns from it:\n"
    )
    print_replay(report, console)


def draw(report: ReplayReport, project: Project, path: Path) -> None:
    """Draw recall over the live days into a PNG file."""
    plot_recall(
        path,
        report.bucket_starts_ms,
        report.recall_at_50_over_time,
        k=50,
        time_zone=project.time_zone,
        title="KuaiRand-Pure, live days",
    )


def figures(report: ReplayReport) -> dict[str, Any]:
    """Return the part `replay` of the demo's report."""
    strategies: dict[str, Any] = msgspec.to_builtins(report.strategies)
    both = report.strategies["full_and_increments"]
    return {
        **strategies,
        "reference": report.reference,
        "clicks": report.clicks,
        "days": list(report.days),
        "publish_every_s": REQUEST.publish_every_s[0],
        "freshness_s": both.freshness_s,
        "deltas_published": both.deltas_published,
        "answers_checked": report.answers_checked,
        "answers_differing": report.answers_differing,
        "over_time": {
            "bucket_starts_ms": report.bucket_starts_ms,
            "recall_at_50": report.recall_at_50_over_time,
        },
        "seconds": report.seconds,
    }


def main() -> None:
    """Replay the live days alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    configure(0)
    project = score.variant("two_tower")
    if not (project.data_path / "imported").is_dir():
        score.fresh_import(project)
    report = replay_live_days(project)
    show_live_days(report, console)
    if arguments.json:
        text = json.dumps(figures(report), indent=2) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    if arguments.plot:
        draw(report, project, arguments.plot)


if __name__ == "__main__":
    main()
