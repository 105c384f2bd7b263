"""Which items the day added and which were withdrawn: one numbered file of the whole project.

    overlays/
      items.json      the register: items added within the day with their features, items withdrawn
      .items.lock     held by flock while it changes
      g-000007/       their vectors by that generation's item tower: see `item_overlay`

The register belongs to no generation: a withdrawn item stays out of all that follow, and the next
generation encodes the day's items anew. It is replaced as a whole and ends in a checksum of itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from twotower.data.ids import Id, IdKind, as_id_array, decode_ids
from twotower.data.schema import IdArray
from twotower.durable import exclusive, fsync_folder, read_regular, replace_file
from twotower.failpoints import failpoint
from twotower.publishing.checked import (
    Fingerprint,
    decode_checked,
    encode_checked,
    fingerprint_of,
)

__all__ = [
    "OVERLAYS",
    "DayItem",
    "ItemRegister",
    "Withdrawn",
    "changing_register",
    "read_register",
    "register_fingerprint",
    "write_register",
]

OVERLAYS: Final = "overlays"
FORMAT_VERSION: Final = 1
_NAME: Final = "items.json"
_LOCK: Final = ".items.lock"
_LOCK_TIMEOUT_S: Final = 30.0
_MAX_BYTES: Final = 1 << 28


class DayItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An item that came within the day."""

    item_id: Id
    features: dict[str, Any] = {}
    display: dict[str, Any] = {}
    """Shown beside it; its features where it is empty."""
    added_ms: int = 0


class Withdrawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An item that nobody gets any more, until it is restored."""

    item_id: Id
    reason: str = ""
    withdrawn_ms: int = 0


class ItemRegister(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the file holds."""

    format_version: int = FORMAT_VERSION
    number: int = 0
    """1, 2, 3 …: every change takes the next one."""
    added_number: int = 0
    """The change that `added` is of; the vectors of a generation are those of such a number."""
    added: list[DayItem] = []
    """By item ID."""
    withdrawn: list[Withdrawn] = []
    """By item ID."""
    check: str = ""
    """BLAKE2b-256 of this with an empty `check`."""

    def withdrawn_ids(self, kind: IdKind) -> IdArray:
        """Return the withdrawn items, ascending, in the form in which IDs are looked up."""
        return _id_array([entry.item_id for entry in self.withdrawn], kind)


def _id_array(item_ids: Sequence[Id], kind: IdKind) -> IdArray:
    """Return distinct IDs, ascending, in their stored form."""
    return np.unique(as_id_array(list(item_ids), kind))


def register_fingerprint(data_path: Path) -> Fingerprint | None:
    """Return what changes with every change of the register, None where there is none."""
    return fingerprint_of(data_path / OVERLAYS / _NAME)


def read_register(data_path: Path) -> ItemRegister:
    """Return the register, an empty one with number 0 where there is none.

    Raises:
        CorruptArtifact: it is torn, altered, foreign or newer.
    """
    path = data_path / OVERLAYS / _NAME
    if not os.path.lexists(path):
        return ItemRegister()
    content = read_regular(path, _MAX_BYTES)
    remedy = (
        "no item was added or withdrawn by it; restore it from a backup, or remove it and give the "
        "commands again"
    )
    return decode_checked(content, ItemRegister, FORMAT_VERSION, str(path), remedy=remedy)


@contextlib.contextmanager
def changing_register(data_path: Path) -> Iterator[ItemRegister]:
    """Give the register to somebody who changes it, and keep others who would out.

    Raises:
        CorruptArtifact: as `read_register`.
        NotReady: another process does not end its change in time.
    """
    folder = data_path / OVERLAYS
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(data_path)
    with exclusive(folder / _LOCK, "changing the items of the day", _LOCK_TIMEOUT_S):
        yield read_register(data_path)


def write_register(
    data_path: Path,
    before: ItemRegister,
    *,
    added: Sequence[DayItem] | None = None,
    withdrawn: Sequence[Withdrawn] | None = None,
) -> ItemRegister:
    """Replace the register durably, inside `changing_register`; what is not given stays."""
    number = before.number + 1
    after = ItemRegister(
        number=number,
        added_number=before.added_number if added is None else number,
        added=before.added if added is None else _in_order(added),
        withdrawn=before.withdrawn if withdrawn is None else _in_order(withdrawn),
    )
    content = encode_checked(after)
    replace_file(
        data_path / OVERLAYS / _NAME, content, lambda step: failpoint(f"items.register {step}")
    )
    return msgspec.json.decode(content, type=ItemRegister)


def _in_order(entries: Sequence[Any]) -> list[Any]:
    """Return the entries by ID, of a repeated ID the last one."""
    by_id = {entry.item_id: entry for entry in entries}
    kind: IdKind = "int" if all(isinstance(item_id, int) for item_id in by_id) else "str"
    return [by_id[item_id] for item_id in decode_ids(_id_array(list(by_id), kind))]
