"""`twotower generations diff`: two generations side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

if TYPE_CHECKING:
    from rich.table import Table

    from twotower.publishing.comparison import Difference, Figure, ListOverlap
    from twotower.publishing.manifest import Manifest

__all__ = ["diff"]

FirstArgument = Annotated[str, typer.Argument(metavar="A", help="Usually the older one.")]
SecondArgument = Annotated[str, typer.Argument(metavar="B", help="The other.")]
LengthOption = Annotated[int, typer.Option("-k", min=1, help="Length of the lists compared.")]
UsersOption = Annotated[int, typer.Option("--users", min=1, help="Probe users, at most.")]


def diff(
    first: FirstArgument,
    second: SecondArgument,
    k: LengthOption = 20,
    users: UsersOption = 1000,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show what is different between two generations, and what users get of it.

    Example: twotower generations diff g-000001 g-000002
    """
    from twotower.config import load_project
    from twotower.publishing.comparison import compare
    from twotower.publishing.store import ModelStore

    store = ModelStore(load_project(config).data_path)
    found = compare(store.open(first), store.open(second), k=k, num_users=users)
    if as_json:
        output.emit_json(found)
        return
    _show(found)


def _show(found: Difference) -> None:
    output.console.print(found.relation, markup=False)
    output.console.print(_days_table(found))
    output.console.print(_figures_table(found))
    if found.gates:
        output.console.print(_gates_table(found))
    output.console.print(_rows_table(found))
    if found.overlap is not None:
        output.console.print(_overlap_words(found.overlap), markup=False)


def _days_table(found: Difference) -> Table:
    from rich.table import Table

    table = Table("", found.first.name, found.second.name)
    pairs = zip(_words(found.first), _words(found.second), strict=True)
    for (name, first), (_, second) in pairs:
        style = None if first == second else "bold"
        table.add_row(name, first, second, style=style)
    return table


def _words(manifest: Manifest) -> list[tuple[str, str]]:
    window = manifest.window
    refused = ", ".join(result.gate for result in manifest.refused)
    return [
        ("kind", manifest.kind),
        ("parent", manifest.parent or "none"),
        ("created", manifest.created_at),
        ("trained days", f"{window.from_day or 'history'} to {window.through_day or 'history'}"),
        ("event digest", manifest.trained.digest),
        ("settings", manifest.settings_digest[:12]),
        ("seed", str(manifest.seed)),
        ("index", manifest.index.engine),
        ("gates", f"refused by {refused}" if refused else "passed"),
    ]


def _figures_table(found: Difference) -> Table:
    from rich.table import Table

    table = Table("figure")
    for column in (found.first.name, found.second.name, "change"):
        table.add_column(column, justify="right")
    for figure in found.figures:
        if figure.first or figure.second:  # what neither run did is left out
            numbers = _number(figure.first), _number(figure.second)
            table.add_row(figure.name.replace("_", " "), *numbers, _change(figure))
    return table


def _gates_table(found: Difference) -> Table:
    from rich.table import Table

    needs = {result.gate: result.needs for result in [*found.first.gates, *found.second.gates]}
    table = Table("gate")
    for column in (found.first.name, found.second.name, "needs"):
        table.add_column(column, justify="right")
    for figure in found.gates:
        numbers = _number(figure.first), _number(figure.second)
        table.add_row(figure.name, *numbers, needs[figure.name])
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.4f}" if abs(value) >= 0.001 else f"{value:.2g}"


def _change(figure: Figure) -> str:
    if figure.first is None or figure.second is None:
        return ""
    change = figure.second - figure.first
    if not change:
        return "same"
    share = f" ({change / figure.first:+.1%})" if figure.first else ""
    return f"{'+' if change > 0 else '-'}{_number(abs(change))}{share}"


def _rows_table(found: Difference) -> Table:
    from rich.table import Table

    table = Table("rows by ID")
    only = (f"only {found.first.name}", f"only {found.second.name}")
    for column in ("in both", "changed", "moved by", *only):
        table.add_column(column, justify="right")
    for change in found.tables:
        table.add_row(
            change.table.removesuffix("_embeddings"),
            f"{change.common_rows:,}",
            f"{change.changed_share:.1%}",
            f"{change.mean_shift:.1%}",
            f"{change.only_first:,}",
            f"{change.only_second:,}",
        )
    return table


def _overlap_words(overlap: ListOverlap) -> str:
    return (
        f"overlap@{overlap.k} of the lists of {overlap.num_users:,} users: "
        f"mean {overlap.mean:.1%}; one user in ten keeps at most {overlap.lowest_decile:.0%}; "
        f"{overlap.same_lists:.1%} keep all their items"
    )
