"""A project of its own for a replay: the days before it, one base generation, an empty event log.

Whatever the replay trains and publishes is written there; the real project is only read.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.import_copy import copy_days_before
from twotower.nightly import run_night
from twotower.progress import SILENT, Progress
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore

__all__ = ["copy_base", "find_base", "stage_project"]


def stage_project(
    project: Project, folder: Path, first: str, *, progress: Progress = SILENT
) -> Project:
    """Return the project as it was when the day `first` began, below another folder.

    The base is the project's own generation with that cut; where it has none, the nights before
    are trained there.

    Args:
        project: it is not changed.
        folder: empty; becomes the data folder.
        first: first live day.
        progress: told of every step of nights that are trained.

    Raises:
        DataError: no day before `first` is imported.
        GateRefused: a night that had to be trained did not pass a gate.
    """
    staged = msgspec.structs.replace(project, data_dir=str(folder.resolve()))
    data = copy_days_before(ImportedData.open(project.data_path), staged.data_path, first)
    base = find_base(project, data.days[-1])
    if base is None:
        for day in data.days:
            run_night(staged, day, progress=progress)
        return staged
    copy_base(base, ModelStore(staged.data_path))
    return staged


def copy_base(base: Generation, store: ModelStore) -> None:
    """Make a generation of another store live in an empty one."""
    store.root.mkdir(parents=True)
    shutil.copytree(base.path, store.root / base.name)
    store.activate(base.name, force=True, reason="base of a replay")


def find_base(project: Project, through: str) -> Generation | None:
    """Return the project's newest full generation whose last day is `through`, None without one."""
    store = ModelStore(project.data_path)
    manifests = store.manifests()
    for name in reversed(store.names()):
        window = getattr(manifests[name], "window", None)
        if window is not None and window.through_day == through:
            return store.open(name)
    return None
