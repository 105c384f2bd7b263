"""`twotower init` writes a commented configuration, `twotower import` brings a log in."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.cli.output import console, emit_json
from twotower.durable import replace_file
from twotower.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from twotower.data.import_report import EntityReport, ImportReport, Rejection

__all__ = ["RECIPES", "import_command", "init", "project_template", "register", "show_report"]


RECIPES: Final = ("feed", "ids", "news")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("init")(init)
    app.command("import")(import_command)


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]")] = DEFAULT_CONFIG,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="feed|ids|news", help="Begin with settings measured on such a log."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented project file to fill in.

    A recipe gives the model, its training and its increments, each setting with the reason for it:
    feed for items that last and have features, ids for lists without times or features, news for
    items that live for hours.

    Example: twotower init --recipe feed
    """
    content = project_template(recipe)
    if file.exists() and not force:
        raise ConfigError(f"{file} is there already and is unchanged; replace it with --force")
    replace_file(file, content.encode())
    console.print(f"wrote {escape(str(file))}; fill it in, then: twotower import --dry-run")


def project_template(recipe: str | None) -> str:
    """Return a project file to fill in, its part on the model that of a recipe where one is named.

    Raises:
        ConfigError: there is no such recipe.
    """
    folder = resources.files("twotower.cli")
    template = (folder / "project_template.toml").read_text(encoding="utf-8")
    if recipe is None:
        return template
    if recipe not in RECIPES:
        raise ConfigError(
            f"expected a recipe among {', '.join(RECIPES)}, found '{recipe}'"
            f"{suggestion(recipe, RECIPES)}; nothing was written"
        )
    rule = next(line for line in template.splitlines(keepends=True) if line.startswith("# ----"))
    sections = template.split(rule)
    place = next(n for n, section in enumerate(sections) if "\n[model]\n" in section)
    chosen = (folder / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
    sections[place] = chosen.removeprefix(rule)
    return rule.join(sections)


def import_command(
    config: ConfigOption = DEFAULT_CONFIG,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and report, write nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check the log, the users and the items, and write them as typed days.

    Example: twotower import --dry-run
    """
    from twotower.config import load_project
    from twotower.data.days import require_polars

    project = load_project(config)
    require_polars("importing")
    from twotower.data.importing import import_tables

    report = import_tables(project, dry_run=dry_run)
    if json:
        emit_json(report)
    else:
        show_report(report, project.data_path)


def show_report(report: ImportReport, data_path: Path) -> None:
    """Write a report for people."""
    console.print(_sources_table(report))
    console.print(_days_table(report))
    for side, entity in (("users", report.users), ("items", report.items)):
        if entity is not None and entity.features:
            console.print(_features_table(side, entity))
    _show_rejections(report)
    for note in report.notes:
        console.print(f"[cyan]note:[/] {escape(note)}")
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    console.print(_outcome(report, data_path))


def _sources_table(report: ImportReport) -> Table:
    table = Table("source", title="read", title_justify="left")
    for name in ("files", "rows read", "duplicates", "rejected", "rows kept"):
        table.add_column(name, justify="right")
    parts = {
        "events": report.events,
        "users": report.users,
        "items": report.items,
        "history": report.history,
    }
    for name, part in parts.items():
        if part is not None:
            rejected = sum(rejection.rows for rejection in part.rejected)
            counts = (len(part.files), part.rows_read, part.duplicates, rejected, part.rows)
            table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def _days_table(report: ImportReport) -> Table:
    events = report.events
    title = (
        f"{len(report.days)} days: {events.users:,} users ({report.user_id_kind} IDs), "
        f"{events.items:,} items ({report.item_id_kind} IDs), "
        f"{events.positives:,} positives ({events.positives / events.rows:.1%})"
    )
    table = Table("day", title=title, title_justify="left")
    table.add_column("events", justify="right")
    for day, rows in report.days.items():
        table.add_row(day, f"{rows:,}")
    return table


def _features_table(side: str, entity: EntityReport) -> Table:
    title = (
        f"{side}: {len(entity.features)} features "
        f"({entity.unlisted_in_events:,} IDs of the events have no row)"
    )
    table = Table("feature", "kind", title=title, title_justify="left")
    for name in ("distinct", "missing", "unreadable"):
        table.add_column(name, justify="right")
    for feature in entity.features:
        table.add_row(
            *(escape(feature.name), feature.kind, f"{feature.cardinality:,}"),
            *(f"{feature.missing_share:.1%}", f"{feature.unreadable:,}"),
        )
    return table


def _show_rejections(report: ImportReport) -> None:
    for part in (report.events, report.users, report.items, report.history):
        for rejection in part.rejected if part is not None else ():
            _show_rejection(rejection)


def _show_rejection(rejection: Rejection) -> None:
    console.print(f"[yellow]rejected {rejection.rows:,} rows:[/] {escape(rejection.reason)}")
    for row in rejection.sample:
        place = row.file if row.line is None else f"{row.file}:{row.line}"
        values = ", ".join(f"{name}={value!r}" for name, value in row.values.items())
        console.print(f"  {escape(place)}  {escape(values)}")


def _outcome(report: ImportReport, data_path: Path) -> str:
    if report.changed is None:
        return "dry run: nothing was written"
    if not report.changed:
        return f"nothing changed: this data is live already (import {report.digest})"
    return f"imported into {escape(str(data_path))} (import {report.digest})"
