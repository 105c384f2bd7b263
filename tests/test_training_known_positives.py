"""Which known positives of a row's user are no negatives: its history, and what the pass trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from staged_log import DAYS, write_staged_project
from toy_lineage import ToyLineage
from twotower.checkpoint import Checkpoint
from twotower.data.examples import Examples
from twotower.data.held_out import HoldOutRule
from twotower.training import full_update, training_pass
from twotower.training.batches import BatchMaker
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
        self.columns = set(columns.items.tolist())
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
