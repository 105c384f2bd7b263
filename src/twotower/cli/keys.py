"""`twotower keys`: who may ask a server or a collector for what."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

if TYPE_CHECKING:
    from twotower.serving.key_changes import NewKey
    from twotower.serving.keys import ApiKey

__all__ = ["create", "list_keys", "register", "revoke", "rotate"]

NameArgument = Annotated[str, typer.Argument(help="Whose key it is.")]
ExpiresOption = Annotated[
    float | None,
    typer.Option(
        "--expires-days", min=0.001, max=36_500, help="When it ends by itself; never if left out."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(no_args_is_help=True)
    for name, command in (
        *(("create", create), ("list", list_keys), ("revoke", revoke), ("rotate", rotate)),
    ):
        group.command(name)(command)
    app.add_typer(group, name="keys", help="Make and end the API keys of server and collector.")


def create(
    name: NameArgument,
    scopes: Annotated[
        list[str],
        typer.Option(
            "--scope", help="What it opens: retrieve, events, admin or metrics; may be repeated."
        ),
    ],
    expires_days: ExpiresOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make an API key; it is shown this once and good within a second.

    Example: twotower keys create shop --scope retrieve --scope events
    """
    from twotower.config import load_project
    from twotower.serving.key_changes import create_key

    data_path = load_project(config).data_path
    _show_new(create_key(data_path, name, scopes, _end_ms(expires_days)), as_json)


def rotate(
    name: NameArgument,
    overlap_hours: Annotated[
        float,
        typer.Option(
            "--overlap-hours", min=0, max=8760, help="How long the key before stays good."
        ),
    ] = 24,
    expires_days: ExpiresOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make the next key of a name with the same scopes; the one before ends after a while.

    Example: twotower keys rotate shop --overlap-hours 2
    """
    from twotower.config import load_project
    from twotower.serving.key_changes import rotate_key

    data_path = load_project(config).data_path
    made = rotate_key(data_path, name, 3600 * overlap_hours, _end_ms(expires_days))
    _show_new(made, as_json)


def revoke(
    name_or_id: Annotated[
        str, typer.Argument(metavar="NAME|KEY_ID", help="A key, or all active ones of a name.")
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """End API keys for good, within a second.

    Example: twotower keys revoke k-000001
    """
    from twotower.config import load_project
    from twotower.serving.key_changes import revoke_keys

    gone = [key.key_id for key in revoke_keys(load_project(config).data_path, name_or_id)]
    if as_json:
        output.emit_json({"revoked": gone})
        return
    output.console.print(f"revoked: {', '.join(gone)}", markup=False)


def list_keys(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show every key that was ever made, never what it is made of.

    Example: twotower keys list
    """
    from rich.table import Table

    from twotower.config import load_project
    from twotower.serving.keys import KeyRegister, read_keys

    found = read_keys(load_project(config).data_path) or KeyRegister()
    now_ms = int(time.time() * 1000)
    if as_json:
        keys = [_shown(key, now_ms) for key in found.keys]
        output.emit_json({"keys": keys, "changes": found.changes})
        return
    table = Table("key", "name", "scopes", "state", "made", "ends")
    for key in found.keys:
        ends = "never" if key.expires_ms is None else _time(key.expires_ms)
        what = (key.key_id, key.name, ", ".join(key.scopes), _state(key, now_ms))
        table.add_row(*what, _time(key.created_ms), ends)
    output.console.print(table)


def _show_new(made: NewKey, as_json: bool) -> None:
    if as_json:
        shown = _shown(made.key, made.key.created_ms)
        output.emit_json({"key": made.secret, **shown})
        return
    output.console.print(made.secret, markup=False)
    output.error_console.print(
        f"{made.key.key_id} of {made.key.name}: keep it, it is stored nowhere and never shown again"
    )


def _shown(key: ApiKey, now_ms: int) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": key.scopes,
        "state": _state(key, now_ms),
        "created_ms": key.created_ms,
        "expires_ms": key.expires_ms,
        "revoked_ms": key.revoked_ms,
    }


def _state(key: ApiKey, now_ms: int) -> str:
    if key.revoked_ms is not None:
        return "revoked"
    return "active" if key.is_active(now_ms) else "expired"


def _end_ms(days: float | None) -> int | None:
    return None if days is None else int(1000 * (time.time() + 86_400 * days))


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(" ", "seconds")[:-6]
