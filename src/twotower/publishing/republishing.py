"""A published generation once more, for another vector engine: the same model, another index."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from twotower.checkpoint import Checkpoint
from twotower.data.ids import Id
from twotower.index import check_engine
from twotower.index.settings import IndexSettings
from twotower.publishing.display import Display
from twotower.publishing.generation import Generation
from twotower.publishing.publisher import publish
from twotower.publishing.settings import PublishingSettings
from twotower.publishing.store import ModelStore

__all__ = ["republish"]


def republish(
    store: ModelStore,
    name: str,
    engine: str,
    *,
    index: IndexSettings,
    settings: PublishingSettings | None = None,
) -> Generation:
    """Write the next generation of `store`, with the model of `name` and an index of `engine`.

    It is measured and judged anew, it has the parent that `name` has, and it is not live yet.
    What was withdrawn since is left out of it.

    Args:
        store: Holds the generation; the new one, too.
        name: The generation.
        engine: Instead of the one that `index` names.
        index: Targets and limits of the engine.
        settings: Bars and sample sizes.

    Raises:
        ConfigError: there is no such engine; nothing was read.
        NotReady: there is no such generation, or another publish is running.
        CorruptArtifact: the generation is damaged.
        MissingExtra: the engine's package is not installed.
    """
    check_engine(engine)
    published = store.open(name)
    checkpoint = Checkpoint.load(published.path / "checkpoint")
    return publish(
        checkpoint,
        store,
        index=msgspec.structs.replace(index, engine=engine),
        settings=settings,
        display=_display(published, checkpoint),
        metrics=published.manifest.metrics,
    )


def _display(published: Generation, checkpoint: Checkpoint) -> dict[Id, dict[str, Any]]:
    """Return what the generation shows of its items, by item ID."""
    shown = Display(
        published.array("items/display.npy"), published.array("items/display_offsets.npy")
    )
    ids = checkpoint.items.decode(np.arange(len(checkpoint.items)))
    return {item_id: shown.at(position) for position, item_id in enumerate(ids)}
