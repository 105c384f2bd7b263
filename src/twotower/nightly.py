"""One night from end to end: train, publish, activate; the checks refuse, nothing is half done."""

from __future__ import annotations

from collections.abc import Mapping

from twotower.checkpoint import Checkpoint
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.ids import Id
from twotower.progress import SILENT, Progress
from twotower.publishing.activation import Activation
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.training.base_model import train_base_model
from twotower.training.full_update import run_full_update
from twotower.training.resume import PassKeeper, pass_key
from twotower.training.window import next_day

__all__ = ["display_fields", "publish_base_model", "run_night"]


def publish_base_model(project: Project, *, progress: Progress = SILENT) -> Activation:
    """Train the first model of a lineage, publish it and make it live.

    Raises:
        NotReady: nothing is imported.
        LineageError: no day is imported.
        GateRefused: it did not pass a gate; nothing became live.
    """
    data = ImportedData.open(project.data_path)
    checkpoint = train_base_model(
        data,
        users=project.users,
        items=project.items,
        model=project.model,
        training=project.training,
        progress=progress,
    )
    return _go_live(project, data, checkpoint)


def run_night(
    project: Project, through: str | None = None, *, progress: Progress = SILENT
) -> Activation:
    """Train the days after the live generation's cut, publish the result and make it live.

    A night that was killed goes on from its last save when it is called again. Where nothing is
    live yet, the base model is made first.

    Args:
        project: whose import and whose live generation.
        through: last local day to train; the next imported one when left out.
        progress: told of every step.

    Raises:
        LineageError: the day was trained already or is not imported.
        GateRefused: the candidate did not pass a gate; what was live stays live.
    """
    data = ImportedData.open(project.data_path)
    store = ModelStore(project.data_path)
    if store.live() is None:
        publish_base_model(project, progress=progress)
    parent = store.open()
    checkpoint = Checkpoint.load(parent.path / "checkpoint")
    day = through or next_day(data, checkpoint.meta.window)
    keeper = PassKeeper(
        project.data_path / "work" / f"full-{day}.safetensors",
        pass_key(checkpoint, parent.digest, data.digest, day, project.training),
        project.training.save_every_steps,
    )
    trained = run_full_update(
        checkpoint,
        data,
        day,
        model=project.model,
        training=project.training,
        parent_name=parent.name,
        progress=progress,
        keeper=keeper,
    )
    activation = _go_live(project, data, trained)
    keeper.discard()
    return activation


def _go_live(project: Project, data: ImportedData, checkpoint: Checkpoint) -> Activation:
    store = ModelStore(project.data_path)
    generation = publish(
        checkpoint,
        store,
        index=project.index,
        settings=project.publishing,
        display=display_fields(project, data),
    )
    return store.activate(generation.name)


def display_fields(project: Project, data: ImportedData) -> Mapping[Id, Mapping[str, object]]:
    """Return what is shown beside each item, by item ID: the columns that `display` names."""
    frame = data.items()
    if frame is None or project.items is None or not project.items.display:
        return {}
    columns = project.items.display
    rows = frame.select("item_id", *columns).iter_rows()
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}
