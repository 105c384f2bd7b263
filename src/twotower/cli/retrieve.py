"""`twotower retrieve`: what would this user get, and from which generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from twotower.config import Project
    from twotower.data.ids import Id
    from twotower.serving.profiles import StoredProfile
    from twotower.serving.retriever import Answer, Retriever

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(retrieve)


def retrieve(
    user: Annotated[str, typer.Option("--user", "-u", help="The log's ID of the user.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 20,
    features: Annotated[
        str | None,
        typer.Option(
            "--features", metavar="JSON", help="Profile of the user; wins over the stored one."
        ),
    ] = None,
    recent: Annotated[
        list[str] | None,
        typer.Option("--recent", metavar="ITEM", help="A recent click, oldest first; repeatable."),
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Return items the user has seen, too.")
    ] = False,
    generation: Annotated[
        str | None, typer.Option("--generation", help="Instead of the live one.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show the items that a user gets, and the clicks that they follow from.

    Example: twotower retrieve --user 712 -k 20
    """
    from twotower.config import load_project

    profile = _parse_features(features)
    project = load_project(config)
    retriever = _as_served(project, generation)
    answer = retriever.retrieve(
        user,
        k,
        features=profile,
        recent=recent or None,
        include_seen=include_seen,
        stored=_stored(project, retriever.encoder.users.normal(user)),
    )
    if as_json:
        output.emit_json(answer)
    else:
        _print_answer(answer)


def _as_served(project: Project, generation: str | None) -> Retriever:
    """Return what a server would answer from now; what it would refuse is said."""
    from twotower.serving.day import DayFollower, LogReader, NoCounts
    from twotower.serving.retriever import Retriever

    reader = LogReader(project.data_path, project.join.positive_outcomes)
    day = DayFollower(project.data_path, project.serving, NoCounts(), reader)
    retriever = day.catch_up(Retriever.open(project.data_path, generation))
    reader.close()
    for problem in day.problems.values():
        output.print_error(problem)
    return retriever


def _stored(project: Project, user: Id) -> StoredProfile:
    """Return the profile that a server would find."""
    import asyncio

    from twotower.serving.profiles import look_up_one

    return asyncio.run(look_up_one(project.serving.profiles, user))


def _parse_features(text: str | None) -> dict[str, Any] | None:
    import msgspec

    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f'expected --features to be a JSON object such as \'{{"city": "Oslo"}}\': {error}'
        ) from error


def _print_answer(answer: Answer) -> None:
    made_by = [
        f"generation {answer.generation}",
        f"sequence {answer.sequence}" if answer.sequence else "not live",
        f"delta {answer.delta or 'none'}",
    ]
    if answer.items_number is not None:
        made_by.append(f"items {answer.items_number}")
    if answer.user_state_offset is not None:
        made_by.append(f"events before offset {answer.user_state_offset:,}")
    output.console.print(f"user {answer.user_id} · {', '.join(made_by)}", markup=False)
    if answer.degraded:
        output.console.print(f"degraded: {', '.join(answer.degraded)}", markup=False)
    clicks = [([str(click.item_id)], click.display) for click in answer.recent]
    if clicks:
        output.console.print(_table("recent clicks, newest first", ["item"], clicks))
    found = [
        ([str(item.rank), str(item.item_id), f"{item.score:.4f}"], item.display)
        for item in answer.candidates
    ]
    output.console.print(_table("items", ["rank", "item", "score"], found))


def _table(title: str, columns: list[str], rows: list[tuple[list[str], dict[str, Any]]]) -> Table:
    """Return a table with one more column for each display field."""
    from rich.markup import escape
    from rich.table import Table

    fields = list(dict.fromkeys(name for _, display in rows for name in display))
    table = Table(*columns, *map(escape, fields), title=title, title_justify="left")
    for cells, display in rows:
        shown = [_text(display.get(name)) for name in fields]
        table.add_row(*map(escape, [*cells, *shown]))
    return table


def _text(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
