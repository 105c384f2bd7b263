"""`twotower doctor`: what this machine has and lacks."""

from __future__ import annotations

from typing import Final

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

__all__ = ["register"]

_STYLES: Final = {"good": "green", "warning": "yellow", "bad": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)


def doctor(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check packages, limits, disk, clock, port and data folder; exit code 1 if one is bad.

    Without a project file only the machine is examined.

    Example: twotower doctor
    """
    from rich.markup import escape
    from rich.table import Table

    from twotower.config import load_project
    from twotower.doctor import examine

    has_project = config.exists() or config != DEFAULT_CONFIG
    findings = examine(load_project(config) if has_project else None)
    if as_json:
        output.emit_json(findings)
    else:
        table = Table("check", "", "found", "what to do")
        for finding in findings:
            style = _STYLES[finding.verdict]
            words = (finding.check, f"[{style}]{finding.verdict}[/]", escape(finding.found))
            table.add_row(*words, escape(finding.advice))
        output.console.print(table)
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)
