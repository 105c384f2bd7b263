"""One night from end to end: train, publish, activate; the checks refuse, nothing is half done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from twotower.checkpoint import Checkpoint, Window
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.held_out import HoldOutRule
from twotower.data.ids import Id
from twotower.data.joined_days import open_days
from twotower.durable import exclusive
from twotower.increment_runs import catch_up
from twotower.increments import remove_increments
from twotower.index import drop_orphans, point_alias
from twotower.mining import miner_of
from twotower.progress import SILENT, Progress
from twotower.publishing.activation import Activation
from twotower.publishing.day_items import item_vectors
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.item_register import read_register
from twotower.publishing.publisher import publish
from twotower.publishing.retention import Pruned, prune
from twotower.publishing.store import ModelStore
from twotower.training.base_model import train_base_model
from twotower.training.full_update import run_full_update
from twotower.training.hard_negatives import Miner
from twotower.training.resume import PassKeeper, pass_key, run_key
from twotower.training.window import next_day, open_window

__all__ = [
    "NightPlan",
    "announce",
    "display_fields",
    "plan_night",
    "prune_project",
    "run_night",
    "start_lineage",
]

_LOCK: Final = ".night.lock"
_SAVE: Final = "full-"
_BASE_SAVE: Final = "base.pass"


class _Parent(NamedTuple):
    """What a night starts from."""

    checkpoint: Checkpoint
    name: str | None
    """Of the generation; None for a base model of nothing, which is not published."""
    digest: str
    sequence: int
    """Of the activation that is current when the night begins; 0 before the first."""


def start_lineage(project: Project, *, progress: Progress = SILENT) -> Checkpoint:
    """Train the first model of a lineage; publish it and make it live if it learned anything.

    Without a history there is nothing to train a base model on: it is the random start of the
    first night and nothing that anybody should be served. One that was killed goes on from its
    last save.

    Raises:
        NotReady: nothing is imported, or another process trains a night of this project.
        LineageError: no day is imported, or something became live in the meantime.
        GateRefused: it did not pass a gate; nothing became live.
    """
    with _training(project):
        return _start_lineage(project, progress)


def _start_lineage(project: Project, progress: Progress) -> Checkpoint:
    sequence = _sequence(project)
    data = open_days(project.data_path)
    features = (project.users, project.items)
    keeper = PassKeeper(
        project.data_path / "work" / _BASE_SAVE,
        run_key(data.digest, project.model, project.training, features),
        project.training.save_every_steps,
    )
    checkpoint = train_base_model(
        data,
        users=project.users,
        items=project.items,
        model=project.model,
        training=project.training,
        progress=progress,
        keeper=keeper,
    )
    if checkpoint.meta.trained.rows:
        _go_live(project, data, checkpoint, sequence)
    keeper.discard()
    return checkpoint


@contextmanager
def _training(project: Project) -> Iterator[Path]:
    """Keep other nights out; give the folder where the saves of this one lie."""
    work = project.data_path / "work"
    work.mkdir(parents=True, exist_ok=True)
    with exclusive(work / _LOCK, "training a night", timeout_s=0.0):
        yield work


def _sequence(project: Project) -> int:
    live = ModelStore(project.data_path).live()
    return live.sequence if live else 0


class NightPlan(msgspec.Struct, frozen=True):
    """What a night would train."""

    parent: str | None
    """None: a base model is made first."""
    from_day: str
    through_day: str
    skipped: tuple[str, ...]
    events: int
    positives: int


def plan_night(
    project: Project, through: str | None = None, *, skip: Sequence[str] = ()
) -> NightPlan:
    """Return what `run_night` would train; nothing is trained or written.

    Raises:
        LineageError: as `run_night`.
    """
    data, store = open_days(project.data_path), ModelStore(project.data_path)
    live = store.open(verify=False).manifest if store.live() else None
    parent = Window(from_day=None, through_day=None, cut_ms=0)
    if live is not None:
        parent = msgspec.convert(msgspec.to_builtins(live.window), Window)
    window = open_window(data, parent, through or next_day(data, parent, skip), skip)
    return NightPlan(
        parent=live.name if live else None,
        from_day=window.window.from_day or "",
        through_day=window.window.through_day or "",
        skipped=window.window.skipped,
        events=len(window.events.event_id),
        positives=window.num_positives,
    )


def run_night(
    project: Project,
    through: str | None = None,
    *,
    skip: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Activation:
    """Train the days after the live generation's cut, publish the result and make it live.

    A night that was killed goes on from its last save when it is called again. Where nothing is
    live yet, the base model is made first.

    Args:
        project: whose import and whose live generation.
        through: last local day to train; the next imported one when left out.
        skip: days before it that are left out for good, imported or not.
        progress: told of every step.

    Raises:
        LineageError: the day was trained already or is not imported, or one before it is missing;
            or something else became live while the night trained: that stays live.
        GateRefused: the candidate did not pass a gate; what was live stays live.
        NotReady: nothing is imported, or another process trains a night of this project.
    """
    with _training(project):
        return _run_night(project, through, skip, progress)


def _run_night(
    project: Project, through: str | None, skip: Sequence[str], progress: Progress
) -> Activation:
    data = open_days(project.data_path)
    parent = _parent(project, progress)
    day = through or next_day(data, parent.checkpoint.meta.window, skip)
    hold_out = _hold_out_rule(project)
    features = (project.users, project.items)
    run = (parent.digest, data.digest, day, sorted(skip), project.training, hold_out, features)
    keeper = PassKeeper(
        project.data_path / "work" / f"{_SAVE}{day}.pass",
        pass_key(parent.checkpoint, *run),
        project.training.save_every_steps,
    )
    trained = run_full_update(
        parent.checkpoint,
        data,
        day,
        model=project.model,
        training=project.training,
        parent_name=parent.name,
        progress=progress,
        keeper=keeper,
        hold_out=hold_out,
        skip=skip,
        miner=_miner(project, parent.name),
    )
    activation = _go_live(project, data, trained, parent.sequence)
    keeper.discard()
    return activation


def _miner(project: Project, parent: str | None) -> Miner | None:
    if parent is None:
        return None
    generation = ModelStore(project.data_path).open(parent, verify=False)
    return miner_of(generation, project.training.negatives.hard)


def _hold_out_rule(project: Project) -> HoldOutRule:
    gates = project.publishing.gates
    return HoldOutRule(
        gates.holdout_positives, gates.holdout_max_share, gates.holdout_min_positives
    )


def _parent(project: Project, progress: Progress) -> _Parent:
    store = ModelStore(project.data_path)
    if store.live() is None:
        base = _start_lineage(project, progress)
        if store.live() is None:
            return _Parent(base, None, "", 0)
    live, activation = store.open_live()
    checkpoint = Checkpoint.load(live.path / "checkpoint")
    return _Parent(checkpoint, live.name, live.digest, activation.sequence)


def _go_live(
    project: Project, data: ImportedData, checkpoint: Checkpoint, sequence: int
) -> Activation:
    """Publish the checkpoint and make it live, unless something did after `sequence`.

    What was joined after its cut is learned over it first: its delta goes live with it.
    """
    store = ModelStore(project.data_path)
    generation = publish(
        checkpoint,
        store,
        index=project.index,
        settings=project.publishing,
        display=display_fields(project, data),
    )
    if not generation.manifest.refused:
        catch_up(project, generation)
    _encode_day_items(project, generation)
    activation = store.activate(generation.name, only_after=sequence)
    announce(project, activation)
    return activation


def announce(project: Project, activation: Activation) -> None:
    """Let a vector server's alias name the collection of what became live, for others to use.

    Raises:
        NotReady: the server does not answer; the generation is live all the same.
    """
    folder = ModelStore(project.data_path).root / activation.generation / "index"
    point_alias(folder, project.index.milvus.prefix)


def _encode_day_items(project: Project, generation: Generation) -> None:
    """Encode the items of the day by the candidate, so that they go live together with it."""
    register = read_register(project.data_path)
    if register.added:
        item_vectors(project.data_path, generation, Encoder.of(generation), register)


def prune_project(project: Project, *, keep: int, dry_run: bool = False) -> Pruned:
    """Prune the store, the increments over what it drops, and saves that no night needs.

    Args:
        project: whose store.
        keep: newest generations that stay besides those that are needed.
        dry_run: only say what would be removed.

    Raises:
        CorruptArtifact: what is live cannot be known; nothing is removed.
        NotReady: a night or a publish is running.
    """
    work = project.data_path / "work"
    if not work.is_dir():
        return _prune(project, keep, dry_run)
    with _training(project):
        store = ModelStore(project.data_path)
        pruned = _prune(project, keep, dry_run)
        saves = _finished_saves(work, store)
        freed_bytes = pruned.freed_bytes + sum(path.stat().st_size for path in saves)
        for path in saves if not dry_run else ():
            path.unlink()
        orphans = [*pruned.orphans, *(path.name for path in saves)]
        return msgspec.structs.replace(pruned, orphans=orphans, freed_bytes=freed_bytes)


def _prune(project: Project, keep: int, dry_run: bool) -> Pruned:
    """Prune the store, and what hangs on generations that it has no more."""
    store, data_path = ModelStore(project.data_path), project.data_path
    pruned = prune(store, keep=keep, dry_run=dry_run)
    if store.root.is_dir() and not dry_run:
        remove_increments(data_path, store.names())
        if project.index.engine == "milvus":
            drop_orphans(project.index.milvus, store.names())
    return pruned


def _finished_saves(work: Path, store: ModelStore) -> list[Path]:
    """Return the saves of days that are live by now, and those that were never finished."""
    through = store.open(verify=False).manifest.window.through_day if store.live() else None
    saves = [
        path
        for path in sorted(work.glob(f"{_SAVE}*"))
        if path.suffix == ".writing" or path.stem.removeprefix(_SAVE) <= (through or "")
    ]
    base = [work / _BASE_SAVE] if store.live() else []
    return [path for path in [*base, *saves, *work.glob("base.writing")] if path.exists()]


def display_fields(project: Project, data: ImportedData) -> Mapping[Id, Mapping[str, object]]:
    """Return what is shown beside each item, by item ID: the columns that `display` names."""
    frame = data.items()
    if frame is None or project.items is None or not project.items.display:
        return {}
    columns = project.items.display
    rows = frame.select("item_id", *columns).iter_rows()
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}
