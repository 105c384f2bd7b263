"""Which known positives of a row's user are no negatives: its history, and what the pass trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from staged_log import DAYS, write_staged_project
from toy_lineage import ToyLineage
from twotower.checkpoint import Checkpoint
from twotower.data.examples import Examples, build_examples
from twotower.data.held_out import HoldOutRule
from twotower.data.user_state import Ragged, append_ragged
from twotower.training import full_update, training_pass
from twotower.training.batches import BatchMaker
from twotower.training.known_positives import PassPositives
from twotower.training.settings import TrainingSettings

Pair = tuple[int, int]


class Night:
    """A full update that holds users out, and the examples that went into it."""

    def __init__(self, folder: Path) -> None:
        lineage = ToyLineage(write_staged_project(folder, history=True))
        self.training = lineage.project.training
        self.examples: list[Examples] = []
        original = training_pass.run_pass

        def recording(state: Checkpoint, examples: Examples, *rest: Any, **named: Any) -> Any:
            self.examples.append(examples)
            return original(state, examples, *rest, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(full_update, "run_pass", recording)
            first = lineage.full(lineage.base, DAYS[0])
            self.state = lineage.full(first, DAYS[1], hold_out=HoldOutRule(20, 0.5, 1))

    def known(self, training: TrainingSettings, indices: np.ndarray[Any, Any]) -> set[Pair] | None:
        """Rows and items, columns all of them, that a batch says to be known."""
        examples = self.examples[-1]
        frequencies = np.full(len(examples), -3, np.float32)
        maker = BatchMaker(self.state, examples, frequencies, training, training.full)
        columns = maker.make(indices, torch.Generator().manual_seed(0)).columns
        self.columns_in_order = columns.items.tolist()
        self.columns = set(self.columns_in_order)
        found = columns.known
        return found and set(zip(found.rows.tolist(), found.items.tolist(), strict=True))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return Night(tmp_path_factory.mktemp("night"))


def test_they_are_the_history_and_what_the_pass_trains_of_the_user(night: Night) -> None:
    examples, indices = night.examples[-1], np.arange(20, 60)
    expected = set()
    for row, index in enumerate(indices):
        past = slice(examples.history_start[index], examples.history_end[index])
        of_user = examples.item[examples.user == examples.user[index]]
        items = [*examples.past.values[past].tolist(), *of_user.tolist()]
        expected |= {(row, item) for item in items}
    found = night.known(night.training, indices)
    assert found == {(row, item) for row, item in expected if item in night.columns}


def test_what_is_held_out_tonight_tells_nothing(night: Night) -> None:
    """A held-out positive that is spared as a negative would be no longer held out."""
    examples, held_out = night.examples[-1], night.state.held_out
    users = night.state.users.positions(held_out.user_id)
    items = night.state.items.positions(held_out.item_id)
    withheld = set(zip(users.tolist(), items.tolist(), strict=True))
    trained = set(zip(examples.user.tolist(), examples.item.tolist(), strict=True))
    rows = np.arange(len(examples))
    known = {
        (int(examples.user[row]), item) for row, item in night.known(night.training, rows) or ()
    }
    histories = examples.histories(rows)
    before = {
        (int(examples.user[r]), int(i))
        for r, i in zip(histories.owners(), histories.values, strict=True)
    }
    assert withheld
    assert not known & (withheld - before - trained)


def test_it_is_a_choice(night: Night) -> None:
    negatives = msgspec.structs.replace(night.training.negatives, exclude_known=False)
    training = msgspec.structs.replace(night.training, negatives=negatives)
    assert night.known(training, np.arange(10)) is None


def test_lists_without_an_order_are_looked_up_once_and_other_lists_beside_them() -> None:
    """Where the history is the rest of what the pass trains, the two agree."""
    user, item = np.array([0, 0, 1, 2, 2]), np.array([4, 7, 4, 1, 9])
    made = build_examples(
        event_id=np.arange(5, dtype=np.uint64),
        user=user,
        item=item,
        event_time_ms=np.zeros(5, np.int64),
        recent=Ragged(np.array([3]), np.array([0, 0, 1, 1])),
        num_users=3,
        history_length=9,
    )

    def among(examples: Examples) -> list[Pair]:
        known = PassPositives(examples, 3, 10).among(torch.arange(10), np.array([0, 2]))
        return sorted(zip(known.rows.tolist(), known.items.tolist(), strict=True))

    lists = append_ragged(Ragged.empty(0), user, item, num_lists=3, limit=0)
    starts, ends = lists.offsets[user], lists.offsets[user + 1]
    same = dataclasses.replace(
        made, past=lists, history_start=starts, history_end=ends, leaves_out_own=True
    )
    assert among(same) == [(0, 4), (0, 7), (1, 4)]
    starts, ends = made.past.offsets[user], made.past.offsets[user + 1]
    more = dataclasses.replace(made, history_start=starts, history_end=ends, leaves_out_own=True)
    assert (1, 3) in among(more)


def test_columns_that_are_no_negatives_are_not_looked_for(night: Night) -> None:
    indices = np.arange(20, 60)
    negatives = msgspec.structs.replace(night.training.negatives, in_batch=False)
    both, uniform = (
        night.known(training, indices)
        for training in (
            night.training,
            msgspec.structs.replace(night.training, negatives=negatives),
        )
    )
    drawn = set(night.columns_in_order[len(indices) :])
    assert uniform == {(row, item) for row, item in both or () if item in drawn}
