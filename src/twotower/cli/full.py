"""Commands that move the model forward: full."""

from __future__ import annotations

from typing import Annotated

import typer

from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.cli.output import console, emit_json, show_progress

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("full")(full)


def full(
    day: Annotated[
        str | None,
        typer.Option(metavar="DAY", help="Last day to train; the next imported one if left out."),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Train the days since the live generation, publish the result and make it live.

    Example: twotower full --day 2022-05-01
    """
    from twotower.config import load_project
    from twotower.nightly import run_night
    from twotower.publishing.store import ModelStore

    project = load_project(config)
    with show_progress() as progress:
        activation = run_night(project, day, progress=progress)
    manifest = ModelStore(project.data_path).open(activation.generation, verify=False).manifest
    if as_json:
        emit_json({"activation": activation, "manifest": manifest})
        return
    trained = manifest.trained
    console.print(
        f"{manifest.name} is live: {trained.rows:,} events of {manifest.window.from_day} to "
        f"{manifest.window.through_day}, each trained once, loss {trained.loss:.4f}, "
        f"{trained.examples_per_s:,.0f} examples/s"
    )
