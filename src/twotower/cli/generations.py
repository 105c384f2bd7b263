"""`twotower generations`: what is published, what is live, and how to change that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from twotower.cli import output
from twotower.cli.gates import gates_table
from twotower.cli.generation_diff import diff
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption
from twotower.cli.republish import republish
from twotower.cli.retention import pin, prune, unpin

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from twotower.publishing.activation import Activation
    from twotower.publishing.listing import ListedGeneration
    from twotower.publishing.manifest import Manifest
    from twotower.publishing.store import ModelStore

__all__ = ["register"]

NameArgument = Annotated[str, typer.Argument(help="A generation, such as g-000001.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Activate although gates refused it; the audit names them.")
]

_OF_THE_RUN: Final = ("admitted", "evicted", "forgotten", "hard", "shown")
"""How counts begin that say what a run did, not what there is."""

_generations = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    for command in (diff, republish, pin, unpin, prune):
        _generations.command(command.__name__)(command)
    app.add_typer(
        _generations, name="generations", help="List, compare, activate, roll back, prune."
    )


@_generations.command("list")
def list_generations(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show every published generation, oldest first, and which one is live.

    Example: twotower generations list
    """
    from twotower.publishing import listing, retention

    store = _store(config)
    found = listing.list_generations(store, retention.pins(store))
    if as_json:
        output.emit_json(found)
    elif found.generations:
        output.console.print(_list_table(found.generations))
    else:
        output.console.print("nothing is published yet; publish with: twotower full", markup=False)


@_generations.command()
def show(
    name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Show what a generation was trained on, what it measured, and what its gates say.

    Example: twotower generations show g-000001
    """
    manifest = _store(config).open(name, verify=False).manifest
    if as_json:
        output.emit_json(manifest)
        return
    output.console.print(_show_table(manifest))
    if manifest.gates:
        output.console.print(gates_table(manifest))


@_generations.command()
def verify(
    name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Read every file of a generation and compare it with its checksum.

    Example: twotower generations verify g-000001
    """
    manifest = _store(config).open(name, verify=True).manifest
    num_bytes = sum(entry.bytes for entry in manifest.files.values())
    if as_json:
        whole = {"name": name, "whole": True, "files": len(manifest.files), "bytes": num_bytes}
        output.emit_json(whole)
    else:
        output.console.print(
            f"{name} is whole: {len(manifest.files)} files, {num_bytes:,} bytes", markup=False
        )


@_generations.command()
def activate(
    name: NameArgument,
    force: ForceOption = False,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Verify a generation and make it live.

    Example: twotower generations activate g-000001
    """
    activation = _store(config).activate(name, force=force, reason=reason, dry_run=dry_run)
    _announce(config, activation, dry_run)
    _print_activation(activation, dry_run, as_json)


@_generations.command("roll-back")
def roll_back(
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make the generation live again that was live before.

    Example: twotower generations roll-back --reason "complaints about repeats"
    """
    activation = _store(config).roll_back(reason=reason, dry_run=dry_run)
    _announce(config, activation, dry_run)
    _print_activation(activation, dry_run, as_json)


def _announce(config: Path, activation: Activation, dry_run: bool) -> None:
    """Tell a vector server what is live; other engines load nothing here."""
    from twotower.config import load_project

    project = load_project(config)
    if project.index.engine == "milvus" and not dry_run:
        from twotower.nightly import announce

        announce(project, activation)


def _store(config: Path) -> ModelStore:
    from twotower.config import load_project
    from twotower.publishing.store import ModelStore

    return ModelStore(load_project(config).data_path)


def _list_table(generations: Sequence[ListedGeneration]) -> Table:
    from rich.table import Table

    table = Table("generation", "live", "kind", "through", "parent", "rows", "corpus", "gates")
    for found in generations:
        mark = "live" if found.live else ""
        if found.damaged is not None:
            table.add_row(found.name, mark, "[bold red]damaged[/]")
        else:
            table.add_row(found.name, mark, *_list_cells(found))
    return table


def _list_cells(found: ListedGeneration) -> list[str]:
    refused = ", ".join(found.refused_by)
    return [
        found.kind or "",
        found.through_day or "history",
        found.parent or "",
        f"{found.rows or 0:,}",
        f"{found.corpus or 0:,}",
        f"refused by {refused}" if refused else "passed",
    ]


def _show_table(manifest: Manifest) -> Table:
    from rich.table import Table

    trained, window, index = manifest.trained, manifest.window, manifest.index
    days = f"{window.from_day or 'history'} to {window.through_day or 'history'}"
    recall = "not measured" if index.ann_recall_at_100 is None else f"{index.ann_recall_at_100:.4f}"
    table = Table(title=manifest.name, show_header=False, title_justify="left")
    rows = {
        "kind": manifest.kind,
        "parent": manifest.parent or "none",
        "created": manifest.created_at,
        "trained": f"{days}: {trained.rows:,} rows",
        "epochs": f"{trained.epochs}, mean loss of the last {_loss(manifest)}",
        "held out": f"{trained.withheld_rows:,} of {trained.window_rows:,} positives, "
        f"{trained.carried_rows:,} carried over and trained",
        "event IDs": f"{trained.distinct_event_ids:,} distinct, digest {trained.digest}",
        "knows": _counted(manifest, of_the_run=False),
        "this run": _counted(manifest, of_the_run=True) or "nobody came or went",
        "vectors": f"{manifest.vector_dim} dimensions, {_score_words(manifest)}",
        "index": f"{index.engine}, {index.num_items:,} items, ANN recall@100 {recall}",
        "metrics": ", ".join(f"{k} {v:.4f}" for k, v in manifest.metrics.items()) or "none",
        "files": f"{len(manifest.files)}, {sum(f.bytes for f in manifest.files.values()):,} bytes",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _loss(manifest: Manifest) -> str:
    loss = manifest.trained.loss
    return "none" if loss is None else f"{loss:.4f}"


def _counted(manifest: Manifest, *, of_the_run: bool) -> str:
    """What is there, or what this run did, as far as it did anything."""
    return ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in manifest.counts.items()
        if name.startswith(_OF_THE_RUN) == of_the_run and (count or not of_the_run)
    )


def _score_words(manifest: Manifest) -> str:
    if manifest.scoring.has_popularity:
        return f"cosine with popularity, weight {manifest.scoring.popularity_weight:g}"
    return "cosine"


def _print_activation(activation: Activation, dry_run: bool, as_json: bool) -> None:
    if as_json:
        output.emit_json(activation)
        return
    overruled = f", overruling {', '.join(activation.forced)}" if activation.forced else ""
    verb = "would be" if dry_run else "is"
    output.console.print(
        f"{activation.generation} {verb} live, sequence {activation.sequence}, "
        f"before it {activation.previous or 'nothing'}{overruled}",
        markup=False,
    )
