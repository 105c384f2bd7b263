"""The command `twotower`: its options, its groups of commands, and what an error looks like.

A group is one module of this folder with a function `register(app)`. Groups import what they
run inside their commands, so that `twotower --help` loads no engine.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from twotower.cli import (
    config,
    doctor,
    events,
    full,
    generations,
    import_,
    increments,
    items,
    join,
    keys,
    output,
    profiles,
    replay,
    retrieve,
    serve,
    status,
    up,
)
from twotower.errors import TwoTowerError
from twotower.overrides import FLAGS

__all__ = ["app", "global_options", "main"]

app: Final = typer.Typer(
    name="twotower",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    output.console.print(f"twotower {version('twotower')}", markup=False)
    raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            default_factory=list,
            show_default=False,
            help="Change a setting for this run, such as training.seed=3; may be repeated.",
        ),
    ],
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, show_default=False, help="Show more of what happens."
        ),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show results and errors only.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Two-tower retrieval: import a click log, train it night by night, publish, retrieve.

    Example: twotower retrieve --user 712 -k 20
    """
    output.configure(-1 if quiet else verbose)
    given = FLAGS.set(tuple(settings))
    context.call_on_close(lambda: FLAGS.reset(given))


for _group in (
    import_,
    full,
    retrieve,
    generations,
    items,
    profiles,
    serve,
    events,
    keys,
    join,
    increments,
    up,
    replay,
    status,
    config,
    doctor,
):
    _group.register(app)


def main() -> None:
    """Runs the command line; what this package refuses becomes one line and an exit code.

    So does what the operating system refuses: a full disk, a missing permission.
    """
    try:
        app()
    except TwoTowerError as error:
        output.print_error(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more
        sys.exit(TwoTowerError.exit_code)
    except OSError as error:
        output.print_error(_refused_by_system(error))
        sys.exit(TwoTowerError.exit_code)


def _refused_by_system(error: OSError) -> str:
    """What to tell of it: all that is published is written aside first, so it stays whole."""
    where = f" at {error.filename}" if error.filename else ""
    return (
        f"expected to read and write freely{where}, found: {error.strerror or error}; what was "
        "live is unchanged and nothing half written is used; free disk space or correct the "
        "permissions, then give the same command again"
    )
