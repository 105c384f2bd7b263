"""What `compare` says of two generations whose difference is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny_checkpoint import replace_table, tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.index.settings import IndexSettings
from twotower.publishing.comparison import Difference, compare
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore


def compared(folder: Path, first: Checkpoint, second: Checkpoint, k: int = 5) -> Difference:
    store = ModelStore(folder)
    before, after = (publish(each, store, index=IndexSettings()) for each in (first, second))
    return compare(before, after, k=k)


@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_generation_is_like_itself(tmp_path: Path, kind: str) -> None:
    found = compared(tmp_path, tiny_checkpoint(kind=kind), tiny_checkpoint(kind=kind))  # type: ignore[arg-type]
    assert [change.changed_share for change in found.tables] == [0, 0, 0]
    assert [change.mean_shift for change in found.tables] == [0, 0, 0]
    assert found.overlap is not None
    assert (found.overlap.mean, found.overlap.same_lists, found.overlap.num_users) == (1, 1, 12)
    same = [figure.first == figure.second for figure in found.figures if figure.name != "bytes"]
    assert all(same)


def test_it_counts_the_rows_that_changed_and_by_how_much(tmp_path: Path) -> None:
    changed = tiny_checkpoint()
    rows = changed.model.tables["user_id"].weight.numpy().copy()
    rows[changed.users.rows[:5]] *= 2  # of twelve users two have no row of their own
    replace_table(changed, "user_id", rows)
    found = compared(tmp_path, tiny_checkpoint(), changed)
    users = found.tables[0]
    assert (users.table, users.common_rows) == ("user_id_embeddings", 10)
    assert users.changed_share == pytest.approx(0.5)
    assert users.mean_shift == pytest.approx(0.5)
    assert found.tables[1].changed_share == 0
    assert found.overlap is not None
    assert found.overlap.mean < 1


def test_rows_are_compared_by_id_and_not_by_number(tmp_path: Path) -> None:
    renumbered = tiny_checkpoint()
    order = np.r_[0, np.random.default_rng(0).permutation(renumbered.users.num_rows - 1) + 1]
    rows = renumbered.model.tables["user_id"].weight.numpy().copy()
    replace_table(renumbered, "user_id", rows[order])
    renumbered.users.rows = np.argsort(order)[renumbered.users.rows]
    found = compared(tmp_path, tiny_checkpoint(), renumbered)
    assert found.tables[0].changed_share == 0
    assert found.overlap is not None
    assert found.overlap.mean == 1


def test_other_parameters_give_other_lists(tmp_path: Path) -> None:
    found = compared(tmp_path, tiny_checkpoint(seed=1), tiny_checkpoint(seed=2), k=30)
    assert found.overlap is not None
    assert 0.2 < found.overlap.mean < 0.9
    assert found.overlap.lowest_decile <= found.overlap.mean


def test_items_that_one_does_not_know_overlap_with_none(tmp_path: Path) -> None:
    few, many = tiny_checkpoint(num_items=30), tiny_checkpoint(num_items=60)
    found = compared(tmp_path, few, many, k=10)
    assert {figure.name: (figure.first, figure.second) for figure in found.figures}["items"] == (
        30,
        60,
    )
    assert found.overlap is not None
    assert 0 <= found.overlap.mean < 1


def test_lineages_of_other_users_have_no_common_list(tmp_path: Path) -> None:
    found = compared(tmp_path, tiny_checkpoint(kind="int"), tiny_checkpoint(kind="str"))
    assert found.overlap is None
    assert found.tables[0].common_rows == 0


def test_it_says_how_they_are_related(tmp_path: Path) -> None:
    child = tiny_checkpoint(parent="g-000001")
    assert compared(tmp_path, tiny_checkpoint(), child).relation == (
        "g-000002 was trained from g-000001"
    )
