"""An incremental update that is found again where it was stored, with its unpublished rows."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import torch

from twotower.data.example_log import JoinedExamples
from twotower.model.touched_rows import Mark, TouchedRows
from twotower.publishing.delta_rows import DeltaRows
from twotower.training.increment.changes import Changes, Reached, TableRows
from twotower.training.increment.journal import Journal
from twotower.training.increment.positives import Positives
from twotower.training.incremental_update import IncrementalUpdate, Learned

__all__ = ["DurableUpdate"]

_TABLES: Final = ("user_id", "item_id")


class DurableUpdate:
    """Learns, commits, and knows what the next delta has to hold. One process at a time."""

    def __init__(self, begun: IncrementalUpdate, journal: Journal) -> None:
        """Go on from the last commit.

        Args:
            begun: an update that has learned nothing yet.
            journal: of the same run.
        """
        self.update = begun
        self.published_offset = begun.offset
        """The next delta begins here."""
        self._journal = journal
        self._counts: Counter[str] = Counter()
        self._uncommitted: list[Positives] = []
        changes = journal.load()
        if changes is not None:
            self._restore(changes)

    @property
    def offset(self) -> int:
        """Of the next joined example."""
        return self.update.offset

    @property
    def counts(self) -> dict[str, int]:
        """What was learned since the last delta."""
        return dict(self._counts)

    def learn(self, examples: JoinedExamples) -> Learned:
        """Learn from the next joined examples; nothing is stored yet.

        Raises:
            LineageError, GateRefused: as `IncrementalUpdate.learn`.
        """
        learned = self.update.learn(examples)
        self._uncommitted.append(Positives.of(examples))
        counts = learned._asdict()
        del counts["loss"]
        self._counts.update(counts)
        return learned

    def commit(self) -> None:
        """Store the offset and the rows that it changed, in one atomic step.

        Raises:
            GateRefused: a row is not finite; what was stored before stays.
        """
        if not self._uncommitted:
            return
        changes = self._changes()
        for rows in (changes.users, changes.items):
            self.update.watch.check_rows(rows.weight, self.offset)
        self._journal.commit(changes)
        self._uncommitted.clear()
        for name in _TABLES:
            self._touched(name).set_mark(Mark.COMMIT)

    def agree(self, published_offset: int) -> None:
        """Agree with the deltas that are there: the last one ends at `published_offset`.

        A process that was killed between a delta and the next commit finds that everything is
        published. Where neither fits, as when the state was lost and is learned anew, the next
        delta holds every row that moved since the base, from where the last one ended.
        """
        if published_offset == self.published_offset:
            return
        is_all_published = published_offset == self.offset
        for name in _TABLES:
            touched = self._touched(name)
            unpublished = None if is_all_published else touched.since(Mark.START)
            touched.set_mark(Mark.DELTA, unpublished)
        self.published_offset = published_offset
        self._counts.clear()

    def take_delta_rows(self) -> DeltaRows:
        """Return the rows that the next delta has to hold; it ends at `offset`, once committed."""
        rows = self.update.take_delta_rows()
        if rows:
            self.published_offset = self.offset
            self._counts.clear()
        return rows

    def _changes(self) -> Changes:
        first, newest = self.update.watch.losses()
        return Changes(
            Reached(
                offset=self.offset,
                newest_event_time_ms=self.update.newest_event_time_ms,
                published_offset=self.published_offset,
                first_losses=first,
                newest_losses=newest,
                counts=self.counts,
            ),
            Positives.joined(self._uncommitted),
            np.array([len(part.offset) for part in self._uncommitted]),
            *(self._rows(name) for name in _TABLES),
        )

    def _rows(self, name: str) -> TableRows:
        touched = self._touched(name)
        table = self.update.state.model.tables[name]
        return TableRows.of(table, touched.since(Mark.COMMIT), touched.since(Mark.DELTA))

    def _restore(self, changes: Changes) -> None:
        """Note again what was noted, in the same portions, and take over what was learned."""
        ends = np.cumsum(changes.portions)
        for start, end in zip(ends - changes.portions, ends, strict=True):
            self.update.note(changes.positives.take(start, end))
        for name, rows in zip(_TABLES, (changes.users, changes.items), strict=True):
            rows.put(self.update.state.model.tables[name])
            touched = self._touched(name)
            touched.note(torch.from_numpy(rows.rows))
            touched.set_mark(Mark.DELTA, rows.unpublished)
            touched.set_mark(Mark.COMMIT)
        reached = changes.reached
        self.update.offset = reached.offset
        self.update.newest_event_time_ms = reached.newest_event_time_ms
        self.update.watch.restore(reached.first_losses, reached.newest_losses)
        self.published_offset = reached.published_offset
        self._counts = Counter(reached.counts)

    def _touched(self, name: str) -> TouchedRows:
        touched = self.update.state.model.tables[name].touched
        assert touched is not None, "the update tracks its ID tables"
        return touched
