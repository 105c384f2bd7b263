"""The incremental update: from the last FULL model, the stream in order, one pass, ID rows only.

Every dense parameter, every categorical and multi-valued row, the history table and the unknown-ID
row stay as they are, bit for bit. In mode `user` the item vectors are constants, those that the
index serves; in mode `user_and_item` the ID rows of the stream's items learn too. What is learned
lives as long as its base: the next full update starts from the last full model and never from here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint
from twotower.data.example_log import JoinedExamples
from twotower.data.ids import UNKNOWN_ROW
from twotower.data.schema import IntArray
from twotower.errors import ConfigError, LineageError
from twotower.model.embedding_table import EmbeddingTable
from twotower.model.growing_rows import GrowingRows
from twotower.model.touched_rows import Mark, TouchedRows
from twotower.publishing.delta_rows import DeltaRows
from twotower.training.batches import BatchMaker
from twotower.training.increment.frozen_inputs import FrozenInputs
from twotower.training.increment.item_vectors import encode_items, served_items
from twotower.training.increment.loss_watch import LossWatch
from twotower.training.increment.notes import Noted, StreamNotes
from twotower.training.increment.popularity import PopularityCoordinate
from twotower.training.increment.positives import Positives
from twotower.training.increment.row_owners import RowOwners
from twotower.training.increment.settings import IncrementSettings
from twotower.training.increment.user_rows import UserRowsPass
from twotower.training.settings import IdDropoutSettings, PassSettings, TrainingSettings
from twotower.training.step import Stepper
from twotower.training.training_pass import mix_seeds

if TYPE_CHECKING:
    import polars as pl

__all__ = ["IncrementalUpdate", "Learned"]

FloatArray = npt.NDArray[np.float32]
_STREAM: Final = 0x57
"""Tells the random numbers of the stream from those of a pass."""


class Learned(NamedTuple):
    """What became of some joined examples, counted while they were learned."""

    examples: int
    positives: int
    trained: int
    over_limit: int
    """Positives beyond what one user may teach in a window: counted, not trained."""
    admitted_users: int
    admitted_items: int
    loss: float
    """Mean over the trained ones, 0 where there were none."""


class IncrementalUpdate:
    """The ID rows that the stream moves over one base generation. Not safe for many threads.

    The same base, settings, thread count and portions of examples give the same rows, bit for bit.
    After an error of `learn` the update is not used any more.
    """

    _adam: torch.optim.Adam | None = None
    """Moves dense parameters; None, as ever but in a study of what freezing them is worth."""

    def __init__(
        self,
        base: Checkpoint,
        settings: IncrementSettings,
        training: TrainingSettings,
        *,
        item_vectors: FloatArray | None = None,
        first_offset: int = 0,
        item_table: pl.DataFrame | None = None,
    ) -> None:
        """Start where the base ends.

        Args:
            base: of the live full generation; it is not changed.
            settings: which rows learn, and how.
            training: the loss, its negatives and when an ID earns a row.
            item_vectors: what the base's index serves, in the order of its corpus; encoded anew
                where it was not published.
            first_offset: of the joined examples, the first that the base has not learned from.
            item_table: features of items, for those that are new in the stream.

        Raises:
            ConfigError: there would be no negatives, or popularity is to be live without a
                coordinate.
        """
        if not training.negatives.in_batch and settings.uniform == 0:
            raise ConfigError(
                "expected at least one source of easy negatives, found negatives.in_batch = false "
                "with increment.uniform = 0; nothing was learned"
            )
        self.state = copy.deepcopy(base)
        self.settings = settings
        self.offset = first_offset
        """Of the next example to learn from."""
        self.newest_event_time_ms = 0
        self.watch = LossWatch(settings.loss_limit)
        self._training = msgspec.structs.replace(
            training, id_dropout=IdDropoutSettings(user=0.0, item=0.0, profile=0.0)
        )
        self._notes = StreamNotes(self.state, settings, training.admission, item_table)
        self.popularity = PopularityCoordinate(self.state, settings)
        self._user_owners, self._item_owners = (
            RowOwners(self.state.users),
            RowOwners(self.state.items),
        )
        self._items: GrowingRows | None = None
        self._freeze()
        if settings.rows == "user":
            self._items = GrowingRows(served_items(self.state, item_vectors))
        self._inputs = FrozenInputs(self.state, moves_items=settings.rows == "user_and_item")

    def _freeze(self) -> None:
        """Let ID rows move, of the tables that learn, and nothing else."""
        tables, moves_items = self.state.model.tables, self.settings.rows == "user_and_item"
        self.state.model.freeze_all_but("user_id", *(["item_id"] if moves_items else []))
        may_move = torch.ones(len(tables["user_id"]), dtype=torch.bool)
        may_move[UNKNOWN_ROW] = False
        tables["user_id"].touched = TouchedRows(may_move)
        tables["item_id"].touched = TouchedRows(
            torch.zeros(len(tables["item_id"]), dtype=torch.bool)
        )
        if self.settings.accumulators == "fresh":
            for name in ("user_id", "item_id"):
                tables[name].decay(0.0)

    def learn(self, examples: JoinedExamples) -> Learned:
        """Learn from the next joined examples, in their order, each once.

        Raises:
            LineageError: they do not follow what was learned before.
            GateRefused: the loss is not finite, or explodes.
        """
        self._check_follows(examples.offset)
        noted = self.note(Positives.of(examples))
        loss = self._train(noted)
        if len(examples.offset):
            self.offset = int(examples.offset[-1]) + 1
            newest = int(examples.event_time_ms.max())
            self.newest_event_time_ms = max(self.newest_event_time_ms, newest)
        return Learned(
            examples=len(examples.offset),
            positives=len(noted.examples) + noted.over_limit,
            trained=len(noted.examples),
            over_limit=noted.over_limit,
            admitted_users=noted.admitted.admitted_users,
            admitted_items=noted.admitted.admitted_items,
            loss=loss,
        )

    def note(self, positives: Positives) -> Noted:
        """Do what comes before learning: IDs, admission, histories, bounds, frequencies."""
        noted, state = self._notes.note(positives), self.state
        self._user_owners.follow(noted.examples.user)
        self._item_owners.follow(noted.examples.item)
        self.popularity.note(noted.examples.item, noted.examples.event_time_ms)
        if self._items is not None:
            new = np.arange(len(self._items.values), len(state.items))
            self._items.append(encode_items(state, new))
        else:
            self._inputs.follow_items()
            rows = state.items.rows[noted.examples.item]
            _touched(state.model.tables["item_id"]).release(rows[rows != UNKNOWN_ROW])
        return noted

    def take_delta_rows(self) -> DeltaRows:
        """Return what changed since this was called before.

        Touched and admitted IDs, and items whose popularity coordinate moved, where that is live.
        """
        state, tables = self.state, self.state.model.tables
        users = self._user_owners.in_order(_touched(tables["user_id"]).since(Mark.DELTA))
        items = self.popularity.moved()
        if self._items is None:
            touched = self._item_owners.in_order(_touched(tables["item_id"]).since(Mark.DELTA))
            items = np.union1d(items, touched)
        items = items[np.argsort(state.items.ids[items])]
        for name in ("user_id", "item_id"):
            _touched(tables[name]).set_mark(Mark.DELTA)
        return DeltaRows(
            user_ids=state.users.ids[users],
            user_embeddings=_rows(tables["user_id"], state.users.rows[users]),
            item_ids=state.items.ids[items],
            item_embeddings=_rows(tables["item_id"], state.items.rows[items]),
            item_vectors=self.popularity.send(items, self._item_vectors(items)),
        )

    def _item_vectors(self, positions: IntArray) -> torch.Tensor:
        """Return the vectors of items as they are served from now on."""
        if self._items is None:
            return encode_items(self.state, positions)
        return self._items.values[torch.from_numpy(positions)]

    def _train(self, noted: Noted) -> float:
        """Take one pass over the examples in their order; return their mean loss."""
        if len(noted.examples) == 0:
            return 0.0
        if self._training.threads:
            torch.set_num_threads(self._training.threads)
        examples, size = noted.examples, self.settings.batch_size
        total_loss = 0.0
        for start, loss in zip(range(0, len(examples), size), self._losses(noted), strict=True):
            self.watch.check(loss, int(examples.event_id[start]))
            total_loss += loss * (min(start + size, len(examples)) - start)
        return total_loss / len(examples)

    def _losses(self, noted: Noted) -> Iterator[float]:
        """Take one step after the other, each when its loss is asked for."""
        settings, training, state = self.settings, self._training, self.state
        examples, generator = noted.examples, torch.Generator()
        folded = self._inputs.of(examples) if self._adam is None else None
        items = None if self._items is None else self._items.values

        def seeded(start: int) -> torch.Generator:
            offset = int(examples.event_id[start])
            return generator.manual_seed(mix_seeds(training.seed, _STREAM, offset))

        if items is not None and folded is not None and UserRowsPass.serves(training):
            sides = (folded.user_tower, folded.users)
            yield from UserRowsPass(state, noted, training, settings, items, *sides).losses(seeded)
            return
        schedule = PassSettings(
            batch_size=settings.batch_size,
            uniform=settings.uniform,
            table_learning_rate=settings.learning_rate,
        )
        maker = BatchMaker(
            state,
            examples,
            noted.log_probability,
            training,
            schedule,
            item_vectors=items,
            folded=folded,
        )
        stepper = Stepper(state.model, self._adam, training, schedule, folded)
        for start in range(0, len(examples), settings.batch_size):
            rows = np.arange(start, min(start + settings.batch_size, len(examples)))
            yield stepper.step(maker.make(rows, seeded(start)), generator)

    def _check_follows(self, offsets: IntArray) -> None:
        if len(offsets) and (offsets[0] < self.offset or (np.diff(offsets) <= 0).any()):
            raise LineageError(
                f"expected examples from offset {self.offset} on, ascending, found "
                f"{offsets.min()} to {offsets.max()}; nothing was learned: each is trained once"
            )


def _touched(table: EmbeddingTable) -> TouchedRows:
    assert table.touched is not None, "the update tracks its ID tables"
    return table.touched


def _rows(table: EmbeddingTable, rows: IntArray) -> FloatArray:
    return np.asarray(table.weight.index_select(0, torch.from_numpy(rows)).numpy())
