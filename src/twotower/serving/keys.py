"""API keys: who may ask for what. One file of the project, of hashes only.

    keys/
      keys.json     every key that was ever made, and every change of one: its own audit trail
      .keys.lock    held by flock while it changes

A key is 256 random bits, shown once when it is made. The file holds its SHA-256, which is enough
for a secret that nobody can guess; it is replaced as a whole, readable by its owner only, and ends
in a checksum of itself. Servers look at it all the time, so no change needs a restart.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from twotower.durable import read_regular
from twotower.publishing.checked import Fingerprint, decode_checked, fingerprint_of

__all__ = [
    "SCOPES",
    "ApiKey",
    "KeyChange",
    "KeyRegister",
    "KeyScope",
    "hash_key",
    "key_fingerprint",
    "keys_path",
    "read_keys",
]

KeyScope = Literal["retrieve", "events", "admin", "metrics"]
SCOPES: Final[tuple[KeyScope, ...]] = ("retrieve", "events", "admin", "metrics")
FORMAT_VERSION: Final = 1

_FOLDER: Final = "keys"
_NAME: Final = "keys.json"
_MAX_BYTES: Final = 1 << 24


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key; what it is made of is known to its holder alone."""

    key_id: str
    """Names it in listings and logs; says nothing about the secret."""
    name: str
    """Whose it is. Two keys of one name are active while it is rotated."""
    scopes: list[KeyScope]
    sha256: str
    """Of the key, 64 hexadecimal digits."""
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def is_active(self, now_ms: int) -> bool:
        """Whether it opens anything at that moment."""
        is_over = self.expires_ms is not None and now_ms >= self.expires_ms
        return self.revoked_ms is None and not is_over


class KeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of the audit trail."""

    number: int
    """1, 2, 3 …"""
    at_ms: int
    action: Literal["create", "rotate", "revoke"]
    key_ids: list[str]
    by: str
    """User number of the process that did it."""


class KeyRegister(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the file holds."""

    format_version: int = FORMAT_VERSION
    keys: list[ApiKey] = []
    """In the order in which they were made."""
    changes: list[KeyChange] = []
    check: str = ""
    """BLAKE2b-256 of this with an empty `check`."""

    def active(self, now_ms: int) -> list[ApiKey]:
        """Return the keys that open something at that moment."""
        return [key for key in self.keys if key.is_active(now_ms)]


def hash_key(secret: bytes) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(secret).hexdigest()


def keys_path(data_path: Path) -> Path:
    """Return where the keys are; the file need not exist."""
    return data_path / _FOLDER / _NAME


def key_fingerprint(data_path: Path) -> Fingerprint | None:
    """Return what changes with every change of the keys, None where there is no file of them."""
    return fingerprint_of(keys_path(data_path))


def read_keys(data_path: Path) -> KeyRegister | None:
    """Return all keys, None where none was ever made.

    Raises:
        CorruptArtifact: the file is torn, altered, foreign or newer.
    """
    path = keys_path(data_path)
    if not os.path.lexists(path):
        return None
    content = read_regular(path, _MAX_BYTES)
    remedy = (
        "no key of it is accepted; restore it from a backup, or remove it and create the keys again"
    )
    return decode_checked(content, KeyRegister, FORMAT_VERSION, str(path), remedy=remedy)
