"""The losses side by side: the same parent, the same day, the next day to predict."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from twotower.checkpoint import Checkpoint
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.errors import NotReady
from twotower.evaluation import Evaluation, UserDays, evaluate
from twotower.mining import miner_of
from twotower.progress import SILENT, Progress
from twotower.publishing.generation import Generation
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.replay import ReplayedLog, generation_scorer
from twotower.training.full_update import run_full_update
from twotower.training.settings import LossName

__all__ = ["ComparedLoss", "compare_losses"]


class ComparedLoss(NamedTuple):
    """How one loss did."""

    loss: str
    parent: str
    trained_day: str
    scored_day: str
    training_loss: float
    examples_per_s: float
    evaluation: Evaluation


def compare_losses(
    project: Project, generation: str | None = None, *, progress: Progress = SILENT
) -> Iterator[ComparedLoss]:
    """Train one day with every loss from the same generation and score the next day.

    Nothing is published or made live; all other settings stay as they are, tuned as they may be
    for one of the losses.

    Args:
        project: whose import and generations are used.
        generation: parent; when left out, the newest with two imported days after its cut.
        progress: told of every step.

    Raises:
        NotReady: no generation has two imported days after its cut.
    """
    data = ImportedData.open(project.data_path)
    store = ModelStore(project.data_path)
    parent = _parent(store, data, generation)
    day, next_day = _days_after(data, parent)[:2]
    checkpoint = Checkpoint.load(parent.path / "checkpoint")
    log = ReplayedLog(data)
    (scored,) = log.days(next_day, next_day)
    for loss in get_args(LossName):
        trained = run_full_update(
            checkpoint,
            data,
            day,
            model=project.model,
            training=msgspec.structs.replace(project.training, loss=loss),
            progress=progress,
            miner=miner_of(parent, project.training.negatives.hard),
        )
        evaluation = _score(project, trained, log, scored.truth)
        figures = trained.meta.trained
        yield ComparedLoss(
            loss, parent.name, day, next_day, figures.loss, figures.examples_per_s, evaluation
        )


def _score(project: Project, trained: Checkpoint, log: ReplayedLog, truth: UserDays) -> Evaluation:
    """Publish into a folder of its own, which is removed, and score what was published."""
    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(Path(folder))
        generation = publish(trained, store, index=project.index, settings=project.publishing)
        return evaluate(truth, generation_scorer(generation, log))


def _days_after(data: ImportedData, generation: Generation) -> list[str]:
    through = generation.manifest.window.through_day or ""
    return [day for day in data.days if day > through]


def _parent(store: ModelStore, data: ImportedData, name: str | None) -> Generation:
    names = [name] if name else store.names()[::-1]
    for candidate in names:
        generation = store.open(candidate)
        if len(_days_after(data, generation)) >= 2:
            return generation
    raise NotReady(
        "expected a generation with two imported days after its cut, one to train and one to "
        "score; found none; publish an earlier one first, or import more days"
    )
