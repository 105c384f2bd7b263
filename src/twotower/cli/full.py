"""Commands that move the model forward, and the one that compares how: full, compare-losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twotower.cli.gates import gates_table
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption
from twotower.cli.output import console, emit_json, show_progress
from twotower.errors import GateRefused

if TYPE_CHECKING:
    from twotower.nightly import NightPlan
    from twotower.publishing.manifest import Manifest

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("full")(full)
    app.command("compare-losses")(compare_losses)


def full(
    day: Annotated[
        str | None,
        typer.Option(metavar="DAY", help="Last day to train; the next imported one if left out."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="DAY", help="Leave a day before it out for good; may be repeated."),
    ] = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Train the days since the live generation, publish the result and make it live.

    Example: twotower full --day 2022-05-01
    """
    from twotower.config import load_project
    from twotower.nightly import plan_night, run_night
    from twotower.publishing.store import ModelStore

    project, skipped = load_project(config), tuple(skip or ())
    if dry_run:
        plan = plan_night(project, day, skip=skipped)
        emit_json(plan) if as_json else console.print(_plan_line(plan))
        return
    store = ModelStore(project.data_path)
    published = store.names()
    try:
        with show_progress() as progress:
            activation = run_night(project, day, skip=skipped, progress=progress)
    except GateRefused:
        if not as_json and store.names() != published:
            console.print(gates_table(store.open(store.names()[-1], verify=False).manifest))
        raise
    manifest = store.open(activation.generation, verify=False).manifest
    if as_json:
        emit_json({"activation": activation, "manifest": manifest})
        return
    console.print(gates_table(manifest))
    console.print(_live_line(manifest))


def _plan_line(plan: NightPlan) -> str:
    left_out = f", without {', '.join(plan.skipped)}" if plan.skipped else ""
    return (
        f"dry run: {plan.from_day} to {plan.through_day}{left_out} would be trained from "
        f"{plan.parent or 'a new base model'}: {plan.events:,} events, {plan.positives:,} positives"
    )


def _live_line(manifest: Manifest) -> str:
    trained, window = manifest.trained, manifest.window
    moved = (
        f" ({trained.withheld_rows:,} held out for the next night, {trained.carried_rows:,} "
        "carried over)"
    )
    return (
        f"{manifest.name} is live: {trained.rows:,} events of {window.from_day} to "
        f"{window.through_day}, each trained once{moved if trained.withheld_rows else ''}, "
        f"loss {trained.loss:.4f}, {trained.examples_per_s:,.0f} examples/s"
    )


def compare_losses(
    generation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Parent; the newest with two days after its cut if left out."
        ),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Train one day with every loss from the same generation and score the next day.

    Example: twotower compare-losses --generation g-000005
    """
    from rich.table import Table

    from twotower.config import load_project
    from twotower.loss_comparison import compare_losses as compare

    with show_progress() as progress:
        found = [*compare(load_project(config), generation, progress=progress)]
    if as_json:
        emit_json([{**row._asdict(), "evaluation": row.evaluation.means()} for row in found])
        return
    first = found[0]
    table = Table(title=f"{first.trained_day} from {first.parent}, scored on {first.scored_day}")
    for heading in ("loss", "Recall@20", "Recall@50", "Recall@200", "NDCG@50", "examples/s"):
        is_name = heading == "loss"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    for row in found:
        means = row.evaluation.means()
        shown = ("recall_at_20", "recall_at_50", "recall_at_200", "ndcg_at_50")
        table.add_row(
            row.loss, *(f"{means[name]:.4f}" for name in shown), f"{row.examples_per_s:,.0f}"
        )
    console.print(table)
