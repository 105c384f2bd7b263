"""An imported log, the base model of its lineage, and full updates of it, nothing published."""

from __future__ import annotations

from typing import Any

from twotower.checkpoint import Checkpoint
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.training.base_model import train_base_model
from twotower.training.full_update import run_full_update
from twotower.training.settings import TrainingSettings

__all__ = ["ToyLineage"]


class ToyLineage:
    """What the tests of a full update start from."""

    def __init__(self, project: Project) -> None:
        self.project = project
        import_tables(project)
        self.data = ImportedData.open(project.data_path)
        self.base = train_base_model(
            self.data,
            users=project.users,
            items=project.items,
            model=project.model,
            training=project.training,
        )

    def full(
        self, parent: Checkpoint, day: str, training: TrainingSettings | None = None, **named: Any
    ) -> Checkpoint:
        """The full update through `day`, by the project's settings unless others are given."""
        return run_full_update(
            parent,
            self.data,
            day,
            model=self.project.model,
            training=training or self.project.training,
            **named,
        )
