"""One TOML file describes a project; it is read strictly.

The environment and `--set` may change single settings: file < environment < flags. Unknown
settings are refused with their path and the nearest known name, wrong types with one line. Loads
neither torch nor polars.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import msgspec
from msgspec import inspect

from twotower.data.event_log.settings import EventLogSettings
from twotower.data.label_join.settings import JoinSettings
from twotower.data.settings import EntitySource, EventSource, HistorySource
from twotower.errors import ConfigError, suggestion
from twotower.index.settings import IndexSettings
from twotower.model.settings import ModelSettings
from twotower.overrides import FLAGS, Layered, apply_overrides
from twotower.publishing.settings import PublishingSettings
from twotower.runtime.settings import RuntimeSettings
from twotower.serving.settings import CollectorSettings, ServingSettings
from twotower.training.increment.settings import IncrementSettings
from twotower.training.settings import TrainingSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CONFIG_VERSION",
    "Project",
    "ProjectSettings",
    "effective_settings",
    "layered_settings",
    "load_project",
    "settings_schema",
]

CONFIG_VERSION: Final = 1


class ProjectSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the TOML file may hold."""

    config_version: Annotated[int, msgspec.Meta(ge=1)]
    """Version of this format; a newer one is refused."""
    name: str = "twotower"
    """Shown in reports."""
    data_dir: str = "./twotower-data"
    """Where everything is written, relative to the file."""
    time_zone: str = "UTC"
    """IANA name; a day is a local day there."""
    events: EventSource
    users: EntitySource | None = None
    items: EntitySource | None = None
    history: HistorySource | None = None
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    increment: IncrementSettings = IncrementSettings()
    index: IndexSettings = IndexSettings()
    publishing: PublishingSettings = PublishingSettings()
    serving: ServingSettings = ServingSettings()
    event_log: EventLogSettings = EventLogSettings()
    collector: CollectorSettings = CollectorSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    join: JoinSettings = JoinSettings()

    def __post_init__(self) -> None:
        """Refuse a time zone that does not exist."""
        try:
            ZoneInfo(self.time_zone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"expected an IANA time zone such as 'Europe/Paris', found {self.time_zone!r}"
            ) from error


class Project(ProjectSettings, frozen=True, kw_only=True):
    """The settings together with the file they came from."""

    path: Path
    """The TOML file; it need not exist for a project made in Python."""

    @property
    def root(self) -> Path:
        """Folder that relative paths start from."""
        return self.path.resolve().parent

    @property
    def data_path(self) -> Path:
        """The resolved `data_dir`."""
        return (self.root / Path(self.data_dir).expanduser()).resolve()


def load_project(path: str | Path) -> Project:
    """Read and check a project's TOML file, the environment and the flags of this run.

    Raises:
        ConfigError: the file is missing, is no TOML, or a setting is unknown, of the wrong type
            or of a newer version. Nothing was read or written besides it.
    """
    path = Path(path)
    layered = layered_settings(path)
    outside = sorted({origin for origin in layered.origins.values() if origin != "file"})
    try:
        _check_names(layered.values, inspect.type_info(ProjectSettings), "$")
        settings = _convert(layered.values, ProjectSettings, "$")
    except ConfigError as error:
        changed = f" with {', '.join(outside)}" if outside else ""
        raise ConfigError(f"{path}{changed}: {error}") from None
    values = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return Project(**values, path=path)


def layered_settings(path: str | Path) -> Layered:
    """Return what was given, as plain values that were not checked yet, and where.

    Raises:
        ConfigError: the file cannot be read or is newer; a variable or flag names no setting.
    """
    path = Path(path)
    raw = _read_toml(path)
    try:
        _check_version(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return apply_overrides(raw, inspect.type_info(ProjectSettings), os.environ, FLAGS.get())


def effective_settings(project: Project) -> dict[str, Any]:
    """Return every setting of a project, defaults included, as plain values."""
    values: dict[str, Any] = msgspec.to_builtins(project, enc_hook=str)
    del values["path"]
    return values


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file, by which an editor completes and checks it.

    Conditions between settings are not in it: `load_project` has the last word.
    """
    schema = msgspec.json.schema(ProjectSettings)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; write one with: twotower init {path.name}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _check_version(raw: Mapping[str, Any]) -> None:
    version = raw.get("config_version")
    if isinstance(version, int) and version > CONFIG_VERSION:
        raise ConfigError(
            f"config_version is {version}, this twotower reads up to {CONFIG_VERSION}; "
            "upgrade twotower to use this file"
        )
    if version is None:
        raise ConfigError(f"config_version is missing; write config_version = {CONFIG_VERSION}")


def _check_names(value: object, expected: inspect.Type, path: str) -> None:
    """Refuse unknown keys anywhere below `value`; types are left to msgspec."""
    if isinstance(expected, inspect.UnionType):
        for choice in expected.types:
            _check_names(value, choice, path)
    elif isinstance(expected, inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in expected.fields}
        for key, inner in value.items():
            if key not in fields:
                raise ConfigError(_unknown(key, path, list(fields)))
            _check_names(inner, fields[key], f"{path}.{key}")
    elif isinstance(expected, inspect.DictType) and isinstance(value, dict):
        _check_entries(value, expected, path)
    elif isinstance(expected, inspect.LiteralType):
        _check_choice(value, [str(choice) for choice in expected.values], path)


def _check_entries(value: Mapping[str, object], expected: inspect.DictType, path: str) -> None:
    """Check the values of a free mapping one by one: msgspec would not name the key."""
    for key, inner in value.items():
        _check_names(inner, expected.value_type, f"{path}.{key}")
        if isinstance(expected.value_type, inspect.StructType):
            _convert(inner, expected.value_type.cls, f"{path}.{key}")


def _check_choice(value: object, choices: list[str], path: str) -> None:
    if value not in choices:
        raise ConfigError(
            f"wrong setting at {path}: expected one of {', '.join(choices)}, "
            f"found {value!r}{suggestion(str(value), choices)}"
        )


def _unknown(key: str, path: str, known: list[str]) -> str:
    return f"unknown setting '{key}' at {path}; known: {', '.join(known)}{suggestion(key, known)}"


def _convert(value: object, expected: Any, path: str) -> Any:
    try:
        return msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        raise ConfigError(_rephrase(str(error), path)) from None


def _rephrase(message: str, path: str) -> str:
    """Put msgspec's message into the house's form: where, expected, found."""
    text, _, place = message.partition(" - at ")
    where = path + place.strip("`").removeprefix("$")
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing:
        return f"setting '{missing[1]}' is missing at {where}"
    text = text.replace("`", "'").replace(", got ", ", found ")
    return f"wrong setting at {where}: {text[:1].lower()}{text[1:]}"
