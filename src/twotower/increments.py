"""Incremental updates over a published generation: the loop between two nights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twotower.checkpoint import Checkpoint
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.errors import NotReady
from twotower.publishing.generation import Generation
from twotower.training.incremental_update import IncrementalUpdate

if TYPE_CHECKING:
    import polars as pl

__all__ = ["begin_update"]


def begin_update(
    project: Project, generation: Generation, *, first_offset: int = 0
) -> IncrementalUpdate:
    """Return an incremental update that has learned nothing yet, over a verified generation.

    Nothing is written: whoever learns in simulated time needs no files between.

    Args:
        project: whose settings.
        generation: the base, live or not.
        first_offset: of the joined examples, the first that the base has not learned from.
    """
    return IncrementalUpdate(
        Checkpoint.load(generation.path / "checkpoint"),
        project.increment,
        project.training,
        item_vectors=generation.array("item_vectors.npy"),
        first_offset=first_offset,
        item_table=_item_table(project),
    )


def _item_table(project: Project) -> pl.DataFrame | None:
    """Return the imported items with their features, None where nothing is imported."""
    try:
        return ImportedData.open(project.data_path).items()
    except NotReady:
        return None
