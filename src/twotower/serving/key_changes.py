"""Making, rotating and revoking API keys: what `twotower keys` does."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from twotower.durable import exclusive, fsync_folder, replace_file
from twotower.errors import ConfigError, suggestion
from twotower.failpoints import failpoint
from twotower.publishing.checked import encode_checked
from twotower.serving.keys import (
    SCOPES,
    ApiKey,
    KeyChange,
    KeyRegister,
    KeyScope,
    hash_key,
    keys_path,
    read_keys,
)

__all__ = ["NewKey", "create_key", "revoke_keys", "rotate_key"]

_LOCK: Final = ".keys.lock"
_LOCK_TIMEOUT_S: Final = 30.0
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class NewKey(NamedTuple):
    """A key that was just made."""

    secret: str
    """Not stored anywhere."""
    key: ApiKey


def create_key(
    data_path: Path, name: str, scopes: Sequence[str], expires_ms: int | None = None
) -> NewKey:
    """Make a key.

    Args:
        data_path: The project's data folder.
        name: Whose it is; a name with an active key is rotated instead.
        scopes: What it opens, of `SCOPES`.
        expires_ms: When it ends by itself, in milliseconds since 1970; None for never.

    Raises:
        ConfigError: the name or a scope is none, the name is taken, or the end has passed.
    """
    now_ms = _now_ms()
    checked = _checked_scopes(scopes)
    if not _KEY_NAME.fullmatch(name):
        raise ConfigError(
            "expected a name of 1 to 64 letters, digits, dots, underscores or dashes, found "
            f"{name!r}; no key was made"
        )
    if expires_ms is not None and expires_ms <= now_ms:
        raise ConfigError("expected an expiry in the future; no key was made")
    with _changing(data_path) as before:
        if any(key.name == name for key in before.active(now_ms)):
            raise ConfigError(
                f"{name!r} has an active key already; no key was made; use another name, or give "
                f"it a new one: twotower keys rotate {name}"
            )
        made = _new_key(before, name, checked, now_ms, expires_ms)
        _write(data_path, before, [*before.keys, made.key], "create", [made.key.key_id])
    return made


def rotate_key(
    data_path: Path, name: str, overlap_s: float, expires_ms: int | None = None
) -> NewKey:
    """Make the next key of a name; the one before stays good for `overlap_s`, then it ends.

    Raises:
        ConfigError: the name has no active key, or the end has passed.
    """
    now_ms = _now_ms()
    if expires_ms is not None and expires_ms <= now_ms:
        raise ConfigError("expected an expiry in the future; no key was made")
    with _changing(data_path) as before:
        newest = _active_of(before, name, now_ms)[-1]
        made = _new_key(before, newest.name, newest.scopes, now_ms, expires_ms)
        ends_ms = now_ms + round(1000 * overlap_s)
        keys = [
            msgspec.structs.replace(key, expires_ms=min(key.expires_ms or ends_ms, ends_ms))
            if key.name == newest.name and key.is_active(now_ms)
            else key
            for key in before.keys
        ]
        _write(data_path, before, [*keys, made.key], "rotate", [made.key.key_id])
    return made


def revoke_keys(data_path: Path, name_or_id: str) -> list[ApiKey]:
    """End a key by its ID, or all active ones of a name, for good and at once.

    Raises:
        ConfigError: no active key is called so.
    """
    now_ms = _now_ms()
    with _changing(data_path) as before:
        gone = _active_of(before, name_or_id, now_ms)
        keys = [
            msgspec.structs.replace(key, revoked_ms=now_ms) if key in gone else key
            for key in before.keys
        ]
        _write(data_path, before, keys, "revoke", [key.key_id for key in gone])
    return [key for key in keys if key.revoked_ms == now_ms]


def _now_ms() -> int:
    return int(time.time() * 1000)


def _checked_scopes(scopes: Sequence[str]) -> list[KeyScope]:
    """Return the scopes in the order of `SCOPES`, each once."""
    for scope in scopes:
        if scope not in SCOPES:
            known = ", ".join(SCOPES)
            raise ConfigError(
                f"unknown scope '{scope}'; known: {known}{suggestion(scope, SCOPES)}; "
                "no key was made"
            )
    if not scopes:
        raise ConfigError(f"expected at least one scope of {', '.join(SCOPES)}; no key was made")
    return [scope for scope in SCOPES if scope in scopes]


def _active_of(register: KeyRegister, name_or_id: str, now_ms: int) -> list[ApiKey]:
    active = register.active(now_ms)
    found = [key for key in active if name_or_id in (key.name, key.key_id)]
    if not found:
        known = sorted({key.name for key in active})
        raise ConfigError(
            f"no active key is called '{name_or_id}'; active: {', '.join(known) or 'none'}"
            f"{suggestion(name_or_id, known)}; nothing was changed"
        )
    return found


def _new_key(
    register: KeyRegister,
    name: str,
    scopes: list[KeyScope],
    now_ms: int,
    expires_ms: int | None,
) -> NewKey:
    secret = "tt_" + secrets.token_urlsafe(32)
    key = ApiKey(
        key_id=f"k-{len(register.keys) + 1:06d}",
        name=name,
        scopes=scopes,
        sha256=hash_key(secret.encode()),
        created_ms=now_ms,
        expires_ms=expires_ms,
    )
    return NewKey(secret, key)


@contextlib.contextmanager
def _changing(data_path: Path) -> Iterator[KeyRegister]:
    """Give the keys to somebody who changes them, and keep others who would out."""
    folder = keys_path(data_path).parent
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync_folder(data_path)
    with exclusive(folder / _LOCK, "changing the API keys", _LOCK_TIMEOUT_S):
        yield read_keys(data_path) or KeyRegister()


def _write(
    data_path: Path,
    before: KeyRegister,
    keys: list[ApiKey],
    action: Literal["create", "rotate", "revoke"],
    key_ids: list[str],
) -> None:
    """Replace the file durably, inside `_changing`."""
    change = KeyChange(
        number=len(before.changes) + 1,
        at_ms=_now_ms(),
        action=action,
        key_ids=key_ids,
        by=str(os.getuid()),
    )
    after = KeyRegister(keys=keys, changes=[*before.changes, change])
    path = keys_path(data_path)
    replace_file(path, encode_checked(after), lambda step: failpoint(f"keys {step}"), mode=0o600)
