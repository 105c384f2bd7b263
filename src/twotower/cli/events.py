"""`twotower collect` and `ingest` take events, `twotower events` shows what became of them."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from twotower.cli.forget import forget
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.cli.output import console, emit_json, show_progress
from twotower.errors import ConfigError, DataError, MissingExtra

if TYPE_CHECKING:
    from twotower.config import Project
    from twotower.data.event_log.intake import Intake
    from twotower.data.event_log.rows import Rows
    from twotower.data.events import IdKinds

__all__ = ["collect", "ingest", "register", "rejected", "show", "stats"]

_CHUNK_ROWS: Final = 5000
_TABLES: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(collect)
    app.command()(ingest)
    group = typer.Typer(no_args_is_help=True, help="What was sent, and what became of it.")
    for command in (show, stats, rejected, forget):
        group.command()(command)
    app.add_typer(group, name="events")


def collect(
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="0 takes a free one.", show_default="8081"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without an API key.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take events over HTTP; what is acknowledged is on the disk.

    Example: twotower collect --port 8081
    """
    import msgspec

    from twotower.config import load_project
    from twotower.serving.reach import check_reach

    project = load_project(config)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = msgspec.structs.replace(project.collector, **given)
    requires_key = check_reach(settings.host, project.data_path, insecure=insecure)
    try:
        from twotower.serving.collector_process import CollectorProcess
    except ImportError as error:
        raise MissingExtra(error.name or "uvicorn", "serve", "the collector") from error
    kinds = _project_kinds(project)
    process = CollectorProcess(
        project.data_path, settings, project.event_log, kinds, requires_key=requires_key
    )
    if as_json:
        emit_json({"url": process.url})
    else:
        console.print(
            f"collecting on {process.url}/v1/events; stop with Ctrl-C or SIGTERM", markup=False
        )
    process.run()


def ingest(
    file: Annotated[
        Path,
        typer.Argument(help="NDJSON or a JSON array; CSV or Parquet as [events] says."),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Store the events of a file, each once: a second run changes nothing.

    Example: twotower ingest events.ndjson
    """
    from twotower.config import load_project
    from twotower.data.event_log.intake import Intake

    project = load_project(config)
    kinds = _project_kinds(project)
    with Intake(project.data_path, project.event_log, kinds) as intake:
        counts = _take_all(intake, _read_file(file, project, intake), file.name)
    if as_json:
        emit_json(counts)
        return
    console.print(
        f"{counts['accepted']:,} events stored ({counts['duplicates']:,} of them were there), "
        f"{counts['rejected']:,} rejected; the log ends at {counts['end_offset']:,}"
    )
    if counts["rejected"]:
        console.print("see why: twotower events rejected")


def _read_file(file: Path, project: Project, intake: Intake) -> Rows:
    """Return the rows of a file, whatever its form."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; nothing was stored")
    if file.name.lower().endswith(_TABLES):
        from twotower.data.days import require_polars

        require_polars("reading CSV and Parquet")
        from twotower.data.event_files import read_event_file

        now_ms = int(time.time() * 1000)
        kinds = intake.log.id_kinds
        return read_event_file(file, project.events, project.time_zone, kinds, now_ms)
    try:
        return intake.decode(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: {error}; nothing was stored") from None


def _take_all(intake: Intake, rows: Rows, name: str) -> dict[str, int]:
    """Store rows in transactions of some thousand events; return the counts."""
    counts = {"accepted": 0, "duplicates": 0, "rejected": 0, "end_offset": intake.log.end()}
    with show_progress() as progress:
        progress.begin(f"ingest {name}", len(rows.events), unit="events")
        for part in rows.parts(_CHUNK_ROWS):
            receipt = intake.take_rows(part, int(time.time() * 1000))
            counts["accepted"] += receipt.accepted
            counts["duplicates"] += len(receipt.duplicates)
            counts["rejected"] += len(receipt.rejected)
            counts["end_offset"] = receipt.end_offset
            progress.advance(len(part.events))
        progress.end()
    return counts


def show(
    start: Annotated[
        int | None, typer.Option("--from", min=0, help="First offset; the newest events if absent.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many.")] = 20,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show stored events in the order of their offsets.

    Example: twotower events show --limit 5
    """
    from twotower.config import load_project
    from twotower.data.event_log import open_event_log

    project = load_project(config)
    with open_event_log(project.data_path, project.event_log) as log:
        begin, end = log.bounds()
        first = max(begin, end - limit) if start is None else start
        events = log.read_events(first, limit)
    if as_json:
        emit_json([{"offset": first + place, "event": e} for place, e in enumerate(events)])
        return
    table = Table("offset", "time", "kind", "user", "item", "request", "what")
    for place, event in enumerate(events):
        what = event.outcome or event.stage or ""
        values = (event.kind, event.user_id, event.item_id, event.request_id or "", what)
        table.add_row(
            str(first + place), _time(event.event_time_ms), *(escape(str(v)) for v in values)
        )
    console.print(table)


def stats(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show the log's offsets and how many rows met each fate.

    Example: twotower events stats
    """
    from twotower.config import load_project
    from twotower.data.event_log import open_event_log

    project = load_project(config)
    with open_event_log(project.data_path, project.event_log) as log:
        begin, end = log.bounds()
        newest = log.read(end - 1, 1).received_ms.tolist() if end else [None]
        kinds = log.id_kinds
    fates = {"stored": end, **_letter_counts(project)}
    found = {
        "begin_offset": begin,
        "end_offset": end,
        "newest_received_ms": newest[0],
        "user_id_kind": kinds.user if kinds else None,
        "item_id_kind": kinds.item if kinds else None,
        "fates": fates,
    }
    if as_json:
        emit_json(found)
        return
    console.print(
        f"offsets {begin:,} to {end:,}"
        + (f", the newest received {_time(newest[0])}" if newest[0] is not None else "")
    )
    table = Table("fate", "rows")
    for fate, rows in fates.items():
        table.add_row(fate, f"{rows:,}")
    console.print(table)


def rejected(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many.")] = 20,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show the rows that were rejected, the newest first, and why.

    Example: twotower events rejected --limit 5
    """
    from twotower.config import load_project
    from twotower.data.event_log.dead_letters import DeadLetters

    project = load_project(config)
    with DeadLetters(project.data_path, project.event_log) as letters:
        found = letters.newest(limit)
    if as_json:
        emit_json(found)
        return
    for letter in found:
        head = f"{letter.number}  {_time(letter.received_ms)}  {letter.code}: {letter.reason}"
        console.print(f"{head}\n    {letter.row}", markup=False, emoji=False)


def _letter_counts(project: Project) -> dict[str, int]:
    from twotower.data.event_log.dead_letters import DeadLetters

    with DeadLetters(project.data_path, project.event_log) as letters:
        return letters.counts()


def _project_kinds(project: Project) -> IdKinds | None:
    """Return what the imported IDs are; None before the first import."""
    from twotower.data.events import IdKinds
    from twotower.data.import_manifest import read_manifest

    manifest = read_manifest(project.data_path / "imported")
    if manifest is None:
        return None
    return IdKinds(manifest.table_schema.user_id_kind, manifest.table_schema.item_id_kind)


def _time(ms: int) -> str:
    text = datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat("T", "milliseconds")
    return text.replace("+00:00", "Z")
