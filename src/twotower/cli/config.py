"""`twotower config check | show`: what the settings are, and where each came from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["register"]

EffectiveOption = Annotated[
    bool, typer.Option("--effective", help="Show the defaults of what nobody set, too.")
]
OriginOption = Annotated[bool, typer.Option("--origin", help="Show where each setting came from.")]

_PASSWORD: Final = re.compile(r"(://[^/@:]*:).*(?=@)|([?&]\w*password=)[^&]*")
"""Of a URL: `redis://user:PASSWORD@host`."""

_config = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(_config, name="config", help="Check and show the settings.")


@_config.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Read the file, the environment and the flags, and say whether they fit together.

    Example: twotower config check
    """
    from twotower.config import layered_settings, load_project

    load_project(config)
    origins = layered_settings(config).origins
    outside = sum(origin != "file" for origin in origins.values())
    if as_json:
        output.emit_json({"file": str(config), "settings": len(origins), "overridden": outside})
        return
    output.console.print(
        f"{config} is sound: {len(origins)} settings given, {outside} from outside the file",
        markup=False,
    )


@_config.command()
def show(
    effective: EffectiveOption = False,
    origin: OriginOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show the settings as lines of TOML; with --effective and --origin, all and whence.

    Example: twotower config show --effective --origin
    """
    from twotower.config import effective_settings, layered_settings, load_project

    project, layered = load_project(config), layered_settings(config)
    values = _shown(effective_settings(project) if effective else layered.values)
    origins = {
        ".".join(map(_key, path)): _origin_of(path, layered.origins) for path, _ in _leaves(values)
    }
    if as_json:
        output.emit_json({"settings": values, "origins": origins})
        return
    for path, value in _leaves(values):
        name = ".".join(map(_key, path))
        line = f"# {name} is not set" if value is None else f"{name} = {_text(value)}"
        output.console.print(f"{line}  # {origins[name]}" if origin else line, markup=False)


@_config.command()
def schema() -> None:
    """Write the JSON Schema of the project file, for an editor that completes TOML.

    Example: twotower config schema > twotower.schema.json
    """
    from twotower.config import settings_schema

    output.emit_json(settings_schema())


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the passwords of their URLs."""
    return {name: _without_password(value) for name, value in values.items()}


def _without_password(value: Any) -> Any:
    if isinstance(value, dict):
        return _shown(value)
    return _PASSWORD.sub(r"\1\2***", value) if isinstance(value, str) else value


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _origin_of(path: tuple[str, ...], origins: Mapping[tuple[str, ...], str]) -> str:
    """Return where a setting, or the table that it was given with, came from."""
    given = (
        origins[path[:length]] for length in range(len(path), 0, -1) if path[:length] in origins
    )
    return next(given, "default")


def _key(part: str) -> str:
    return part if part.replace("-", "_").isidentifier() and part.isascii() else _text(part)


def _text(value: object) -> str:
    """Return a value as TOML: what JSON writes of texts, numbers and lists is TOML, too."""
    import msgspec

    return msgspec.json.encode(value).decode()
