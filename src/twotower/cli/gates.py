"""What gates found, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from twotower.publishing.manifest import GateResult, Manifest

__all__ = ["gates_table"]


def gates_table(manifest: Manifest, *, with_details: bool = True) -> Table:
    """Return every gate's figure, its bar and its verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    table = Table(
        Column("gate", no_wrap=True),
        Column("measured", no_wrap=True),
        Column("needs", no_wrap=True),
        Column("verdict", min_width=8),
        *([Column("detail")] if with_details else []),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for result in manifest.gates:
        measured = "" if result.measured is None else f"{result.measured:.4g}"
        cells = (result.gate, measured, result.needs, _verdict(result))
        table.add_row(*cells, *([result.detail] if with_details else []))
    return table


def _verdict(result: GateResult) -> str:
    if result.measured is None:
        return "[dim]not measured[/]"
    return "passed" if result.passed else "[bold red]refused[/]"
