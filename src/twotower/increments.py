"""Incremental updates over the live generation: read, learn, store, publish, follow what is live.

    increments/g-000007/   the state of the increments over one generation
    deltas/g-000007/       what they published

Each generation has its own. A refused night changes nothing; an activation begins the increments of
the new generation, after `catch_up` at its last delta; a roll-back goes on where the increments of
the older generation were left, which is where learning anew from its cut would lead.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from twotower.checkpoint import Checkpoint
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.example_log import ExampleLog
from twotower.durable import exclusive
from twotower.errors import GateRefused, NotReady
from twotower.increment_stop import (
    INCREMENTS,
    IncrementStop,
    clear_stop,
    increments_folder,
    note_stop,
)
from twotower.progress import SILENT, Progress
from twotower.publishing.delta import DELTAS, Delta, DeltaSpan, newest_delta
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import is_name
from twotower.training.increment.durable_update import DurableUpdate
from twotower.training.increment.journal import Journal
from twotower.training.increment.settings import IncrementSettings
from twotower.training.incremental_update import IncrementalUpdate
from twotower.training.resume import run_key

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Increments",
    "begin_update",
    "remove_increments",
]

_LOGGER: Final = logging.getLogger("twotower")
_LOCK: Final = ".increment.lock"
_LEAST_WHOLE_BYTES: Final = 1 << 24
Clock = Callable[[], float]


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


class Increments:
    """The increments over one generation: learn what the log holds, publish what changed."""

    def __init__(
        self, project: Project, generation: Generation, *, clock: Clock = time.time
    ) -> None:
        """Go on from the last commit, or begin at the generation's cut; hold the folder's lock.

        Args:
            project: whose settings and whose example log.
            generation: the base, its checksums verified.
            clock: seconds since 1970, for the times in deltas.

        Raises:
            NotReady: nothing was joined yet.
        """
        self.generation = generation
        self._project = project
        self._clock = clock
        self._next_publish_s = clock() + project.increment.publish_every_s
        self.log = ExampleLog.open(project.data_path)
        first = generation.manifest.window.example_offset
        begun = begin_update(project, generation, first_offset=first)
        folder = increments_folder(project.data_path, generation.name)
        journal = Journal(folder, _key(project, generation, first), _LEAST_WHOLE_BYTES)
        self.state = DurableUpdate(begun, journal)
        last = newest_delta(project.data_path, generation.name)
        self.state.agree(last.span.through_offset if last else first)

    @classmethod
    @contextmanager
    def open(
        cls, project: Project, generation: Generation, *, clock: Clock = time.time
    ) -> Iterator[Increments]:
        """Hold the increments of a generation against every other process while the block runs.

        Raises:
            NotReady: another process learns over it, or nothing was joined yet.
        """
        folder = increments_folder(project.data_path, generation.name)
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / _LOCK, f"learning increments over {generation.name}", 0.0):
            yield cls(project, generation, clock=clock)

    def learn_next(self, progress: Progress = SILENT) -> bool:
        """Learn and store the next examples; return whether the log held any.

        Raises:
            LineageError: the examples were forgotten.
            GateRefused: the loss is not finite, or explodes: nothing of it was stored.
        """
        state, settings = self.state, self._project.increment
        examples = self.log.read(state.offset, settings.commit_every)
        if len(examples.offset) == 0:
            return False
        try:
            learned = state.learn(examples)
            state.commit()
        except GateRefused as error:
            self._note_stop(int(examples.offset[0]), str(error))
            raise
        clear_stop(self._project.data_path, self.generation.name)
        progress.advance(learned.examples, loss=learned.loss)
        return True

    def _note_stop(self, offset: int, reason: str) -> None:
        stop = IncrementStop(
            generation=self.generation.name,
            offset=offset,
            at_ms=int(self._clock() * 1000),
            reason=reason,
        )
        note_stop(self._project.data_path, stop)

    def learn_all(self, progress: Progress = SILENT) -> None:
        """Learn up to the end of the log, as it is now. Raises as `learn_next`."""
        self.log.refresh()
        progress.begin(f"increment of {self.generation.name}", self.log.end - self.state.offset)
        while self.learn_next(progress):
            pass
        progress.end()

    def tick(self, progress: Progress = SILENT) -> Delta | None:
        """Learn whole portions as they fill, and everything when it is time for the next delta.

        A portion is not learned example by example as they come: the fewer there are in a step,
        the fewer and the more alike are its negatives. Raises as `learn_next` and `publish`.
        """
        settings = self._project.increment
        self.log.refresh()
        while self.log.end - self.state.offset >= settings.commit_every:
            self.learn_next(progress)
        if self._clock() < self._next_publish_s:
            return None
        self.learn_next(progress)
        self._next_publish_s = self._clock() + settings.publish_every_s
        return self.publish()

    def publish(self) -> Delta | None:
        """Write what changed since the last delta as the next one; None where nothing did.

        Raises:
            LineageError, CorruptArtifact, NotReady: as `write_delta`; what is live stays.
        """
        state = self.state
        if state.offset < state.published_offset:
            return None  # learned anew, and not yet as far as what is published
        first_offset, counts = state.published_offset, state.counts
        rows = state.take_delta_rows()
        if not rows:
            return None
        delta = write_delta(
            self._project.data_path,
            self.generation,
            rows,
            DeltaSpan(
                first_offset=first_offset,
                through_offset=state.offset,
                newest_event_time_ms=state.update.newest_event_time_ms,
            ),
            now_ms=int(self._clock() * 1000),
            counts=counts,
        )
        _LOGGER.info(
            "published delta=%d base=%r users=%d items=%d through_offset=%d",
            *(delta.sequence, self.generation.name, len(rows.user_ids), len(rows.item_ids)),
            state.offset,
        )
        return delta


def _key(project: Project, generation: Generation, first_offset: int) -> str:
    """Return a name for what the state follows from: a change begins it anew at the cut."""
    default = IncrementSettings()
    learning = msgspec.structs.replace(
        project.increment,
        publish_every_s=default.publish_every_s,
        commit_every=default.commit_every,
        loss_limit=default.loss_limit,
    )
    return run_key(generation.digest, learning, project.training, first_offset)


def remove_increments(data_path: Path, kept: Sequence[str]) -> list[str]:
    """Remove the increments and the deltas over generations that are dropped; return their names.

    Args:
        data_path: the project's data folder.
        kept: the generations that exist.
    """
    removed: set[str] = set()
    for root in (data_path / INCREMENTS, data_path / DELTAS):
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if is_name(folder.name) and folder.name not in kept:
                shutil.rmtree(folder)
                removed.add(folder.name)
    return sorted(removed)
