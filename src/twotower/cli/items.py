"""`twotower items`: what the day adds to the live generation, and what it withdraws from all."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.errors import ConfigError

if TYPE_CHECKING:
    from twotower.publishing.encoding import Encoder
    from twotower.publishing.generation import Generation
    from twotower.publishing.item_register import ItemRegister

__all__ = ["add", "list_items", "register", "restore", "withdraw"]

IdsArgument = Annotated[list[str], typer.Argument(help="The log's IDs.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(no_args_is_help=True)
    for name, command in (
        *(("add", add), ("withdraw", withdraw), ("restore", restore), ("list", list_items)),
    ):
        group.command(name)(command)
    app.add_typer(group, name="items", help="Add, withdraw and restore items within the day.")


class _Live(NamedTuple):
    data_path: Path
    generation: Generation
    encoder: Encoder


def _live(config: Path) -> _Live:
    from twotower.config import load_project
    from twotower.publishing.encoding import Encoder
    from twotower.publishing.store import ModelStore

    data_path = load_project(config).data_path
    generation = ModelStore(data_path).open_live()[0]
    return _Live(data_path, generation, Encoder.of(generation))


def add(
    file: Annotated[
        Path,
        typer.Argument(help="NDJSON or a JSON array of item_id, features, and display if any."),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Let users have items that came today: encoded from their features, served at once.

    Example: twotower items add new-items.ndjson
    """
    from twotower.publishing.day_items import add_items, decode_items

    if not file.is_file():
        raise ConfigError(f"{file}: no such file; nothing was added")
    items = decode_items(file.read_bytes())
    found = add_items(*_live(config), items)
    if as_json:
        output.emit_json(
            {"number": found.register.number, "added": found.added, "known": found.known}
        )
        return
    output.console.print(
        f"{len(found.added):,} items added, {len(found.known):,} are in the live generation "
        f"already; change {found.register.number}",
        markup=False,
    )


def withdraw(
    item_ids: IdsArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever lists them.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Keep items from everybody within a second, and out of every later generation.

    Example: twotower items withdraw 648 712 --reason "legal notice"
    """
    from twotower.publishing.day_items import withdraw_items

    live = _live(config)
    _report(withdraw_items(live.data_path, live.encoder, item_ids, reason), as_json)


def restore(
    item_ids: IdsArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Let everybody have withdrawn items again.

    Example: twotower items restore 648
    """
    from twotower.publishing.day_items import restore_items

    live = _live(config)
    _report(restore_items(live.data_path, live.encoder, item_ids), as_json)


def _report(changed: ItemRegister, as_json: bool) -> None:
    if as_json:
        output.emit_json({"number": changed.number, "withdrawn": changed.withdrawn})
        return
    output.console.print(
        f"{len(changed.withdrawn):,} items are withdrawn; change {changed.number}", markup=False
    )


def list_items(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show the items that were added within the day and those that are withdrawn.

    Example: twotower items list
    """
    from rich.markup import escape
    from rich.table import Table

    from twotower.config import load_project
    from twotower.publishing.item_register import read_register

    found = read_register(load_project(config).data_path)
    if as_json:
        output.emit_json(
            {"number": found.number, "added": found.added, "withdrawn": found.withdrawn}
        )
        return
    table = Table("item", "state", "since", "what")
    for added in found.added:
        shown = ", ".join(f"{name} {value}" for name, value in added.features.items())
        table.add_row(escape(str(added.item_id)), "added", _time(added.added_ms), escape(shown))
    for entry in found.withdrawn:
        cells = (str(entry.item_id), "withdrawn", _time(entry.withdrawn_ms), entry.reason)
        table.add_row(*map(escape, cells))
    output.console.print(table)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(" ", "seconds")[:-6]
