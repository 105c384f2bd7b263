"""Every published generation in a few words, for whoever chooses one: people, commands, routes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twotower.errors import CorruptArtifact
from twotower.publishing.activation import Activation
from twotower.publishing.manifest import Manifest
from twotower.publishing.store import ModelStore

__all__ = ["GenerationList", "ListedGeneration", "ShownGeneration", "list_generations", "show"]


class ListedGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """One published generation; of a damaged one, only its name and what is wrong is known."""

    name: str
    live: bool
    pinned: str | None
    """Why it is pinned; null where it is not."""
    damaged: str | None = None
    kind: str | None = None
    through_day: str | None = None
    parent: str | None = None
    created_at: str | None = None
    rows: int | None = None
    """Positives that were trained."""
    corpus: int | None = None
    engine: str | None = None
    refused_by: list[str] = []
    """Gates that it did not pass."""
    bytes: int | None = None


class GenerationList(msgspec.Struct, frozen=True, kw_only=True):
    """What is published, oldest first, and what is live."""

    live: Activation | None
    generations: list[ListedGeneration]


class ShownGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """One generation with everything that its manifest says."""

    live: bool
    pinned: str | None
    manifest: Manifest


def list_generations(store: ModelStore, pinned: Mapping[str, str]) -> GenerationList:
    """Return every generation of a store, damaged ones too; `pinned` are its pins.

    Raises:
        CorruptArtifact: what is live cannot be known.
    """
    live = store.live()
    live_name = live.generation if live else None
    return GenerationList(
        live=live,
        generations=[
            _listed(name, found, name == live_name, pinned.get(name))
            for name, found in store.manifests().items()
        ],
    )


def _listed(
    name: str, manifest: Manifest | CorruptArtifact, live: bool, pinned: str | None
) -> ListedGeneration:
    if isinstance(manifest, CorruptArtifact):
        return ListedGeneration(name=name, live=live, pinned=pinned, damaged=str(manifest))
    return ListedGeneration(
        name=name,
        live=live,
        pinned=pinned,
        kind=manifest.kind,
        through_day=manifest.window.through_day,
        parent=manifest.parent,
        created_at=manifest.created_at,
        rows=manifest.trained.rows,
        corpus=manifest.counts.get("corpus"),
        engine=manifest.index.engine,
        refused_by=[result.gate for result in manifest.refused],
        bytes=sum(entry.bytes for entry in manifest.files.values()),
    )


def show(store: ModelStore, name: str, pinned: Mapping[str, str]) -> ShownGeneration:
    """Return what is known of one generation, without reading its files.

    Raises:
        ConfigError, NotReady, CorruptArtifact: as `ModelStore.open`.
    """
    manifest = store.open(name, verify=False).manifest
    live = store.live()
    return ShownGeneration(
        live=live is not None and live.generation == name,
        pinned=pinned.get(name),
        manifest=manifest,
    )
