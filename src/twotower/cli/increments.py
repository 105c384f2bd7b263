"""`twotower increment`, `publish-delta`, `deltas`: what moves between two nights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from twotower.publishing.delta import Delta, DeltaManifest

__all__ = ["register"]

GenerationOption = Annotated[
    str | None,
    typer.Option("--generation", metavar="NAME", help="The live one if left out."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(increment)
    app.command()(publish_delta)
    deltas = typer.Typer(name="deltas", no_args_is_help=True, help="What increments published.")
    deltas.command("list")(list_deltas)
    deltas.command()(show)
    app.add_typer(deltas)


def increment(
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Go on with what comes; publish every increment.publish_every_s."
        ),
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Learn the joined examples over the live generation and publish the rows that moved.

    Only ID rows move; the towers stay. With --follow it ends at SIGTERM, after a last delta.

    Example: twotower increment --follow
    """
    import signal
    import threading

    from twotower.config import load_project
    from twotower.increment_runs import run_increment

    stop = threading.Event()
    if follow:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    with output.show_progress() as progress:
        written = run_increment(load_project(config), follow=follow, stop=stop, progress=progress)
    _report(written, as_json)


def publish_delta(
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Publish what increments have learned and not published yet; learn nothing more.

    Example: twotower publish-delta
    """
    from twotower.config import load_project
    from twotower.increment_runs import publish_learned, unpublished

    if dry_run:
        found = unpublished(load_project(config))
        words = f"would publish over {found.base}: {found.users:,} users, {found.items:,} items"
        output.emit_json(found) if as_json else output.console.print(words, markup=False)
        return
    delta = publish_learned(load_project(config))
    _report([delta] if delta else [], as_json)


def list_deltas(
    generation: GenerationOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List the deltas of a generation, oldest first.

    Example: twotower deltas list --generation g-000003
    """
    from rich.table import Table

    deltas = [delta.manifest for delta in _read(generation, config)]
    if as_json:
        output.emit_json(deltas)
        return
    table = Table(
        "delta", "users", "items", "examples", "through offset", "newest event", "written"
    )
    for delta in deltas:
        table.add_row(
            str(delta.sequence),
            f"{delta.counts['users']:,}",
            f"{delta.counts['items']:,}",
            f"{delta.span.through_offset - delta.span.first_offset:,}",
            f"{delta.span.through_offset:,}",
            _utc(delta.span.newest_event_time_ms),
            _utc(delta.created_at_ms),
        )
    output.console.print(table)


def show(
    sequence: Annotated[int, typer.Argument(min=1, help="Number of the delta.")],
    generation: GenerationOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show what one delta holds and where it comes from; every byte is verified.

    Example: twotower deltas show 3
    """
    from rich.table import Table

    from twotower.errors import NotReady

    found = {delta.sequence: delta.manifest for delta in _read(generation, config)}
    if sequence not in found:
        raise NotReady(
            f"there is no delta {sequence}; the last one is {max(found, default='none')}; list "
            "them with: twotower deltas list"
        )
    if as_json:
        output.emit_json(found[sequence])
        return
    table = Table("", "", show_header=False)
    for name, value in _facts(found[sequence]):
        table.add_row(name, value)
    output.console.print(table)


def _read(generation: str | None, config: Path) -> list[Delta]:
    from twotower.config import load_project
    from twotower.publishing.delta import read_deltas
    from twotower.publishing.store import ModelStore

    data_path = load_project(config).data_path
    base = ModelStore(data_path).open(generation, verify=False)
    return [*read_deltas(data_path, base)]


def _report(deltas: Sequence[Delta], as_json: bool) -> None:
    if as_json:
        output.emit_json([delta.manifest for delta in deltas])
        return
    if not deltas:
        output.console.print("nothing new to publish; what is live is unchanged")
    for delta in deltas:
        manifest = delta.manifest
        output.console.print(
            f"delta {manifest.sequence} of {manifest.base}: {manifest.counts['users']:,} users, "
            f"{manifest.counts['items']:,} items, examples {manifest.span.first_offset:,} to "
            f"{manifest.span.through_offset:,}",
            markup=False,
        )


def _facts(delta: DeltaManifest) -> list[tuple[str, str]]:
    size_bytes = sum(entry.bytes for entry in delta.files.values())
    return [
        ("base", f"{delta.base} ({delta.base_manifest[:12]})"),
        ("delta", str(delta.sequence)),
        ("examples", f"{delta.span.first_offset:,} to {delta.span.through_offset:,}"),
        ("newest event", _utc(delta.span.newest_event_time_ms)),
        ("written", _utc(delta.created_at_ms)),
        *((name, f"{count:,}") for name, count in sorted(delta.counts.items())),
        ("bytes", f"{size_bytes:,}"),
    ]


def _utc(moment_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment_ms / 1000)) if moment_ms else ""
