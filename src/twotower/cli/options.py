"""Options that several commands share, each spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = ["DEFAULT_CONFIG", "ConfigOption", "DryRunOption", "JsonOption"]

DEFAULT_CONFIG: Final = Path("twotower.toml")

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="FILE", help="The project's TOML file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would happen, write and remove nothing.")
]
