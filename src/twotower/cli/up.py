"""`twotower up`: everything that a live day needs, under one supervisor."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption
from twotower.cli.output import console, emit_json
from twotower.overrides import FLAGS

if TYPE_CHECKING:
    from twotower.runtime.plan import UpPlan

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(up)


def up(
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without an API key.")
    ] = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Run server, collector, join, increments and the nights; restart what dies, drain on SIGTERM.

    Example: twotower up
    """
    from twotower.config import load_project
    from twotower.runtime.plan import plan_up, run_up

    project = load_project(config)
    plan = plan_up(project, _options(), insecure=insecure)
    if dry_run:
        emit_json(plan) if as_json else _show(plan)
        return
    if as_json:
        emit_json(plan)
    if not run_up(project, plan):
        raise typer.Exit(1)


def _options() -> list[str]:
    """Return what stood before the command, for the commands that are started."""
    level = logging.getLogger("twotower").level
    quietness = {logging.WARNING: ["-q"], logging.DEBUG: ["-v"]}.get(level, [])
    return [*quietness, *(part for flag in FLAGS.get() for part in ("--set", flag))]


def _show(plan: UpPlan) -> None:
    from rich.table import Table

    table = Table("process", "address", "command", title="dry run: would be started")
    for process in plan.processes:
        table.add_row(process.name, process.url or "", " ".join(process.command[1:]))
    console.print(table)
    if plan.night is None:
        console.print("no nights: 'full' is not among runtime.processes", markup=False)
        return
    night = plan.night
    steps = ", then ".join(" ".join(command[3:]) for command in night.commands)
    console.print(
        f"the nights: from {night.at} ({night.time_zone}), next {night.next_due}: {steps}",
        markup=False,
    )
