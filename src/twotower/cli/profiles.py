"""`twotower profiles`: the stored features of users, where they are kept outside generations."""

from __future__ import annotations

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from twotower.errors import ConfigError

__all__ = ["fill", "register"]

_profiles = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(_profiles, name="profiles", help="Stored features of users in Redis.")


@_profiles.callback()
def group() -> None:
    """Stored features of users in Redis."""


@_profiles.command()
def fill(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Write the imported features of all users to Redis; other keys there are left alone.

    Example: twotower profiles fill
    """
    from twotower.config import load_project
    from twotower.data.days import ImportedData
    from twotower.data.imported_profiles import imported_profiles
    from twotower.serving.redis_profiles import fill_profiles

    project = load_project(config)
    settings = project.serving.profiles
    if settings.store != "redis":
        raise ConfigError(
            f"expected serving.profiles.store = \"redis\", found '{settings.store}', whose "
            "profiles come with each generation; nothing was written"
        )
    features = project.users.features if project.users else {}
    num_users, profiles = imported_profiles(ImportedData.open(project.data_path), features)
    with output.show_progress() as progress:
        num_written = fill_profiles(settings, profiles, num_users, progress)
    if as_json:
        output.emit_json({"written": num_written})
        return
    output.console.print(f"{num_written:,} profiles written", markup=False)
