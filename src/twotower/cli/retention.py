"""`twotower generations pin | unpin | prune`: what stays in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from twotower.publishing.retention import Pruned
    from twotower.publishing.store import ModelStore

__all__ = ["pin", "prune", "unpin"]

NameArgument = Annotated[str, typer.Argument(help="A generation, such as g-000001.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for whoever finds the pin.")]
KeepOption = Annotated[
    int, typer.Option("--keep", min=0, help="Newest generations that stay besides those needed.")
]


def pin(
    name: NameArgument,
    reason: ReasonOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Keep a generation through every prune.

    Example: twotower generations pin g-000001 --reason "baseline of May"
    """
    from twotower.publishing import retention

    store = _store(config)
    retention.pin(store, name, reason)
    _report(store, f"{name} is pinned", as_json)


def unpin(
    name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Let a generation go with a later prune.

    Example: twotower generations unpin g-000001
    """
    from twotower.publishing import retention

    store = _store(config)
    was_pinned = retention.unpin(store, name)
    _report(store, f"{name} is pinned no more" if was_pinned else f"{name} was not pinned", as_json)


def prune(
    keep: KeepOption = 3,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Remove old generations and what killed processes left behind.

    The live one, its parent, the one that a roll-back returns to and pinned ones always stay.

    Example: twotower generations prune --keep 3 --dry-run
    """
    from twotower.config import load_project
    from twotower.nightly import prune_project

    pruned = prune_project(load_project(config), keep=keep, dry_run=dry_run)
    if as_json:
        output.emit_json(pruned)
        return
    output.console.print(_prune_table(pruned))
    verb = "would be removed: nothing was written" if dry_run else "removed"
    output.console.print(
        f"{len(pruned.removed)} generations, {len(pruned.orphans)} orphans, "
        f"{pruned.freed_bytes:,} bytes {verb}",
        markup=False,
    )


def _store(config: Path) -> ModelStore:
    from twotower.config import load_project
    from twotower.publishing.store import ModelStore

    return ModelStore(load_project(config).data_path)


def _report(store: ModelStore, words: str, as_json: bool) -> None:
    from twotower.publishing import retention

    if as_json:
        output.emit_json({"pinned": retention.pins(store)})
    else:
        output.console.print(words, markup=False)


def _prune_table(pruned: Pruned) -> Table:
    from rich.table import Table

    table = Table("", "what becomes of it", "why")
    going = "would be removed" if pruned.dry_run else "removed"
    for name in pruned.removed:
        table.add_row(name, f"[yellow]{going}[/]", "older, and nobody needs it")
    for name in pruned.orphans:
        table.add_row(name, f"[yellow]{going}[/]", "left by a process that was killed")
    for name, reasons in pruned.kept.items():
        table.add_row(name, "kept", ", ".join(reasons))
    return table
