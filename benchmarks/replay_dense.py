"""Increments of which every parameter learns, to see what freezing the towers is worth.

Nothing publishes such increments: a delta holds rows, and here the towers move under everybody. So
all users and items are encoded by the model as it is at that moment, in memory.
Legend: `q` questions, `D` vector dimension.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.ids import UNKNOWN_ROW, decode_ids
from twotower.data.schema import IntArray
from twotower.data.user_state import Ragged
from twotower.model.touched_rows import TouchedRows
from twotower.model.towers import Features, History
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.generation import Generation
from twotower.replay.nights import ReplayedLog
from twotower.replay.served import ServedVectors
from twotower.replay.stream import Questions
from twotower.training.increment.item_vectors import encode_items
from twotower.training.incremental_update import IncrementalUpdate
from twotower.training.step import load_adam

__all__ = ["DenseStudy", "DenseUpdate", "ServedModel"]

FloatArray = npt.NDArray[np.float32]


class DenseUpdate(IncrementalUpdate):
    """The stream in its order, one pass, every table and both towers."""

    def _freeze(self) -> None:
        """Freeze nothing; Adam goes on from the base's moments."""
        for name in ("user_id", "item_id"):
            table = self.state.model.tables[name]
            table.touched = TouchedRows(torch.ones(len(table), dtype=torch.bool))
        rate = self._training.full.dense_learning_rate
        self._adam = load_adam(self.state.model, self.state.optimizer, rate)


class DenseStudy:
    """Makes, for `replay_live`, what learns and what is served, which share one model."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._served: ServedModel

    def make_served(self, generation: Generation, log: ReplayedLog) -> ServedModel:
        """Serve the generation as it is until something was learned."""
        self._served = ServedModel(generation, log)
        return self._served

    def make_learner(self, generation: Generation) -> DenseUpdate:
        """Learn over the generation that was served last."""
        project = self._project
        update = DenseUpdate(
            Checkpoint.load(generation.path / "checkpoint"),
            msgspec.structs.replace(project.increment, rows="user_and_item"),  # items learn, too
            project.training,
            item_table=ImportedData.open(project.data_path).items(),
        )
        self._served.update = update
        return update


class ServedModel(ServedVectors):
    """What a model says of everybody, as it is when a delta of it would have been applied."""

    update: IncrementalUpdate | None = None

    def __init__(self, generation: Generation, log: ReplayedLog) -> None:
        super().__init__(generation, log)
        self._log_of_all = log
        self._state: Checkpoint | None = None

    def apply(self, rows: DeltaRows, *, new_items: bool) -> None:
        """Encode every item anew; users are encoded when they are asked about."""
        assert self.update is not None, "what learns was made for this"
        state = self._state = self.update.state
        log = self._log_of_all
        self.users_in = state.users.positions(decode_ids(log.users.ids))
        self.items_in = state.items.positions(decode_ids(log.items.ids))
        items = np.flatnonzero(self.items_in >= 0)
        if not new_items:
            items = items[self.items_there[items] >= 0]
        there = self.items_in[items]
        vectors = encode_items(state, there)
        self._lay(items, self.update.popularity.send(there, vectors))

    def user_vectors(self, asked: Questions, part: IntArray) -> FloatArray:
        """Return the vectors of some questions' users as of each question, `[q, D]`."""
        state = self._state
        if state is None:
            return super().user_vectors(asked, part)
        position = self.users_in[asked.user[part]]
        known = position >= 0
        rows = np.full(len(part), UNKNOWN_ROW, np.int64)
        rows[known] = state.users.rows[position[known]]
        profiles = state.user_features.missing(len(part))
        for values, stored in zip(profiles, state.user_profiles, strict=True):
            values[known] = stored[position[known]]
        features = Features(
            torch.from_numpy(profiles.categorical).long(),
            torch.from_numpy(profiles.numeric),
            torch.from_numpy(profiles.multi).long(),
        )
        history = self._history(state, asked.recent_of(part))
        with torch.no_grad():
            vectors, _ = state.model.encode_users(torch.from_numpy(rows), features, history)
        return np.asarray(vectors.numpy())

    def _history(self, state: Checkpoint, recent: Ragged) -> History | None:
        if not state.meta.model.history_length:
            return None
        there = self.items_in[recent.values]
        rows: npt.NDArray[Any] = np.full(len(there), UNKNOWN_ROW, np.int64)
        rows[there >= 0] = state.items.rows[there[there >= 0]]
        return History(torch.from_numpy(rows), torch.from_numpy(recent.offsets[:-1]))
