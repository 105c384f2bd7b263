"""What stays in the store: pins, and removing what nobody can need any more.

What belongs to a generation beside it, its deltas, overlays and increments, goes with it.

The live generation, its parent, the one that a roll-back would return to and every pinned one are
never removed. A generation is renamed before it is deleted, so that a crash in between leaves no
half generation under a name; what it leaves is swept by the next prune or publish.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from twotower.durable import fsync_folder, read_regular, replace_file
from twotower.publishing.activation import CURRENT
from twotower.publishing.delta import DELTAS
from twotower.publishing.item_register import OVERLAYS
from twotower.publishing.manifest import is_name, read_versioned
from twotower.publishing.store import REMOVED, STAGING, ModelStore

__all__ = ["COMPANIONS", "Pruned", "pin", "pins", "prune", "unpin"]

COMPANIONS: Final = (DELTAS, OVERLAYS, "increments")
"""Folders of the project that hold one folder a generation."""
_PINS: Final = "pins.json"
_FORMAT_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 24


class _Pins(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file `pins.json`: generations that no prune removes, and why."""

    format_version: int = _FORMAT_VERSION
    pinned: dict[str, str]


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What a prune removed, or would have, and what it kept for which reasons."""

    dry_run: bool
    removed: list[str]
    orphans: list[str]
    """Left by publishes, activations and prunes that were killed, and what the day made over
    generations that are gone: `deltas/g-000001`."""
    freed_bytes: int
    kept: dict[str, list[str]]


def pins(store: ModelStore) -> dict[str, str]:
    """Return the pinned generations and the reasons given.

    Raises:
        CorruptArtifact: the file of pins is damaged.
    """
    path = store.root / _PINS
    if not os.path.lexists(path):
        return {}
    return read_versioned(read_regular(path, _MAX_BYTES), _Pins, _FORMAT_VERSION, str(path)).pinned


def pin(store: ModelStore, name: str, reason: str = "") -> None:
    """Keep the generation `name` until it is unpinned.

    Raises:
        ConfigError, NotReady, CorruptArtifact: as `ModelStore.open`.
    """
    store.open(name, verify=False)
    with store.activating():
        _write_pins(store, {**pins(store), name: reason})


def unpin(store: ModelStore, name: str) -> bool:
    """Let the generation `name` go with a later prune; return whether it was pinned."""
    with store.activating():
        pinned = pins(store)
        was_pinned = pinned.pop(name, None) is not None
        _write_pins(store, pinned)
    return was_pinned


def _write_pins(store: ModelStore, pinned: dict[str, str]) -> None:
    content = msgspec.json.encode(_Pins(pinned=dict(sorted(pinned.items()))))
    replace_file(store.root / _PINS, content + b"\n", lambda step: store.at_step(f"pins.{step}"))


def prune(store: ModelStore, *, keep: int, dry_run: bool = False) -> Pruned:
    """Remove the generations that are neither needed nor among the newest, and all orphans.

    Args:
        store: Where.
        keep: Newest generations that stay besides those that are needed.
        dry_run: Only say what would be removed.

    Raises:
        CorruptArtifact: what is live, its parent or the pins cannot be known; nothing is removed.
        NotReady: a publish is running.
    """
    if not store.root.is_dir():
        return Pruned(dry_run=dry_run, removed=[], orphans=[], freed_bytes=0, kept={})
    with store.alone():
        kept = _reasons_to_keep(store, keep)
        removed = [name for name in store.names() if not kept[name]]
        orphans = _orphans(store.root)
        companions = _companions(store, removed)
        paths = [*(store.root / name for name in removed), *orphans, *companions]
        freed_bytes = sum(map(_size_bytes, paths))
        if not dry_run:
            _remove(store, removed, orphans)
            for path in companions:
                shutil.rmtree(path)
                store.at_step(f"prune.companion {path.parent.name}/{path.name}")
    return Pruned(
        dry_run=dry_run,
        removed=removed,
        orphans=[
            *(path.name for path in orphans),
            *(f"{path.parent.name}/{path.name}" for path in companions),
        ],
        freed_bytes=freed_bytes,
        kept={name: reasons for name, reasons in kept.items() if reasons},
    )


def _reasons_to_keep(store: ModelStore, keep: int) -> dict[str, list[str]]:
    names = store.names()
    reasons: dict[str, list[str]] = {name: [] for name in names}
    live = store.live()
    needed = [(name, f"pinned: {why}" if why else "pinned") for name, why in pins(store).items()]
    if live is None:
        needed += [(name, "nothing is live yet") for name in names]
    else:
        parent = store.open(live.generation, verify=False).manifest.parent
        needed += [(live.generation, "live")]
        needed += [(parent, "parent of the live one")] if parent else []
        needed += [(live.previous, "a roll-back returns to it")] if live.previous else []
    needed += [(name, f"among the newest {keep}") for name in names[max(0, len(names) - keep) :]]
    for name, reason in needed:
        if name in reasons:
            reasons[name].append(reason)
    return reasons


def _orphans(root: Path) -> list[Path]:
    asides = [f".{name}.new" for name in (CURRENT, _PINS)]
    return sorted(
        path
        for path in root.iterdir()
        if path.name.startswith((STAGING, REMOVED)) or path.name in asides
    )


def _companions(store: ModelStore, removed: list[str]) -> list[Path]:
    """Return what was made over generations that are removed now, or were before."""
    kept = set(store.names()) - set(removed)
    return sorted(
        path
        for kind in COMPANIONS
        for path in (store.root.parent / kind).glob("*")
        if is_name(path.name) and path.name not in kept and path.is_dir() and not path.is_symlink()
    )


def _remove(store: ModelStore, names: list[str], orphans: list[Path]) -> None:
    doomed = [*orphans]
    for name in names:
        assert is_name(name)
        doomed.append(store.root / f"{REMOVED}{name}")
        os.rename(store.root / name, doomed[-1])
        store.at_step(f"prune.rename {name}")
    fsync_folder(store.root)
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        store.at_step(f"prune.remove {path.name}")
    fsync_folder(store.root)


def _size_bytes(path: Path) -> int:
    """Return the bytes below `path`; a link counts as itself."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size_bytes(child) for child in path.iterdir())
