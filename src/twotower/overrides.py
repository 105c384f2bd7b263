"""Settings from outside the file: file < environment < flags.

A variable `TWOTOWER_TRAINING__SEED=3` is the setting `training.seed`, `--set training.seed=4`
wins over it. Two underscores stand between parts. A variable with two underscores that names no
setting is refused; one without that names none is left alone, since other programs make such
variables too (Kubernetes sets `TWOTOWER_PORT` beside a service of that name).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from twotower.errors import ConfigError, suggestion

__all__ = ["FLAGS", "PREFIX", "Layered", "apply_overrides", "paths_of"]

PREFIX: Final = "TWOTOWER_"
FLAGS: Final[ContextVar[Sequence[str]]] = ContextVar("twotower_flags", default=())
"""What `--set` gave to this run of the command line, as `training.seed=4`."""

Path = tuple[str, ...]


class Layered(NamedTuple):
    """The settings of all layers, as plain values, and where each came from."""

    values: dict[str, Any]
    origins: dict[Path, str]
    """`file`, the name of a variable, or `--set`, for every setting that was given."""


class _Override(NamedTuple):
    origin: str
    path: Path
    text: str


def apply_overrides(
    raw: dict[str, Any],
    expected: inspect.Type,
    environment: Mapping[str, str],
    flags: Sequence[str],
) -> Layered:
    """Lay the environment and the flags over what a file holds; `raw` is not changed.

    Raises:
        ConfigError: a variable or a flag names no setting, or is not of its type.
    """
    values, origins = _copy(raw), dict.fromkeys(paths_of(raw), "file")
    for override in [*_from_environment(environment, expected), *_from_flags(flags)]:
        path, leaf = _resolve(override, expected, values)
        _put(values, path, _read(override, leaf))
        for inner in [known for known in origins if known[: len(path)] == path]:
            del origins[inner]
        origins[path] = override.origin
    return Layered(values, origins)


def paths_of(values: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """Return the path of every value that is no table, and of every empty table."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from paths_of(value, (*path, name))
        else:
            yield (*path, name)


def _copy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(v) if isinstance(v, dict) else v for name, v in raw.items()}


def _from_environment(
    environment: Mapping[str, str], expected: inspect.Type
) -> Iterator[_Override]:
    known = set(_fields(expected))
    for variable in sorted(environment):
        path = tuple(variable.removeprefix(PREFIX).lower().split("__"))
        if variable.startswith(PREFIX) and (len(path) > 1 or path[0] in known):
            yield _Override(variable, path, environment[variable])


def _from_flags(flags: Sequence[str]) -> Iterator[_Override]:
    for flag in flags:
        name, given, text = flag.partition("=")
        if not given:
            raise ConfigError(f"expected --set NAME=VALUE such as training.seed=3, found {flag!r}")
        yield _Override("--set", tuple(name.strip().split(".")), text)


def _fields(expected: inspect.Type) -> dict[str, inspect.Type]:
    """Return the settings of a table, of all its kinds where it may be one of several."""
    if isinstance(expected, inspect.UnionType):
        return {name: t for choice in expected.types for name, t in _fields(choice).items()}
    if isinstance(expected, inspect.StructType):
        return {field.encode_name: field.type for field in expected.fields}
    return {}


def _free_values(expected: inspect.Type) -> inspect.Type | None:
    choices = expected.types if isinstance(expected, inspect.UnionType) else (expected,)
    return next((t.value_type for t in choices if isinstance(t, inspect.DictType)), None)


def _resolve(
    override: _Override, expected: inspect.Type, values: Mapping[str, Any]
) -> tuple[Path, inspect.Type]:
    """Return the path as the file would spell it, and the type of what it holds."""
    path: list[str] = []
    for part in override.path:
        known, free = _fields(expected), _free_values(expected)
        table = _table_at(values, path)
        if free is not None:
            part = next((name for name in table if name.lower() == part.lower()), part)
        elif part not in known:
            where = ".".join(["$", *path])
            raise ConfigError(
                f"{override.origin}: unknown setting '{part}' at {where}; "
                f"known: {', '.join(known) or 'none'}{suggestion(part, list(known))}"
            )
        expected = known[part] if free is None else free
        path.append(part)
    return tuple(path), expected


def _table_at(values: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for part in path:
        inner = values.get(part)
        values = inner if isinstance(inner, dict) else {}
    return values


def _put(values: dict[str, Any], path: Path, value: object) -> None:
    for part in path[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[path[-1]] = value


def _read(override: _Override, expected: inspect.Type) -> object:
    """Return the value of a text: text where text is expected, else as JSON writes it."""
    choices = expected.types if isinstance(expected, inspect.UnionType) else (expected,)
    takes_text = any(isinstance(t, inspect.StrType | inspect.LiteralType) for t in choices)
    if takes_text and not override.text.startswith(("[", "{")):
        return override.text
    try:
        return msgspec.json.decode(override.text)
    except msgspec.DecodeError:
        raise ConfigError(
            f"{override.origin}: expected a value of {'.'.join(override.path)} such as 3, 0.5, "
            f'true or ["a", "b"], found {override.text!r}; nothing was read or written'
        ) from None
