"""Mined negatives: the ranks that were asked for, of the parent, and never what a user clicked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toy import NUM_ITEMS, write_project
from twotower.checkpoint import Checkpoint
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.examples import Examples
from twotower.data.importing import import_tables
from twotower.data.user_state import Ragged
from twotower.loss_comparison import compare_losses
from twotower.mining import mine_ranks
from twotower.nightly import run_night, start_lineage
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.training import full_update, training_pass

MINED = """
[training.negatives.hard]
source = "mined"
share = 0.05
mined_from = 11
mined_to = 30
"""
DAY = "2024-03-01"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = write_project(tmp_path_factory.mktemp("mining"), training=MINED, num_days=3)
    import_tables(project)
    start_lineage(project)
    return project


@pytest.fixture(scope="module")
def parent(project: Project) -> Generation:
    return ModelStore(project.data_path).open()


def rankings(generation: Generation, users: list[int]) -> list[list[int]]:
    """The whole ranking of unseen items, the long way round."""
    encoder = Encoder.of(generation)
    corpus = np.arange(NUM_ITEMS)
    scores = encoder.user_vectors(np.array(users)) @ encoder.item_vectors(corpus).T
    return [
        [item for item in np.argsort(-row, kind="stable") if item not in encoder.seen.list_at(user)]
        for user, row in zip(users, scores, strict=True)
    ]


@pytest.mark.parametrize(("first", "last"), [(1, 5), (11, 30), (70, 500), (200, 500)])
def test_they_are_the_ranks_of_the_exact_ranking(parent: Generation, first: int, last: int) -> None:
    users = [3, 0, 41]
    mined = mine_ranks(parent, np.array(users), first=first, last=last)
    for index, ranking in enumerate(rankings(parent, users)):
        assert mined.list_at(index).tolist() == ranking[first - 1 : last]


def test_nobody_is_mined_for_nobody(parent: Generation) -> None:
    mined = mine_ranks(parent, np.zeros(0, np.int64), first=11, last=30)
    assert isinstance(mined, Ragged)
    assert (len(mined.values), len(mined.offsets)) == (0, 1)


def test_a_night_trains_against_them_and_never_against_a_positive(
    project: Project, parent: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Checkpoint, Examples, Ragged]] = []
    original = training_pass.run_pass

    def recording(state: Checkpoint, examples: Examples, *rest: Any, **named: Any) -> Any:
        (lists,) = named["listed"]
        seen.append((state, examples, lists.by_user))
        return original(state, examples, *rest, **named)

    monkeypatch.setattr(full_update, "run_pass", recording)
    run_night(project, DAY)
    state, examples, lists = seen[0]
    users = np.unique(lists.owners())
    assert set(users.tolist()) <= set(examples.user.tolist())
    data = ImportedData.open(project.data_path)
    events, history = data.day(DAY), data.history()
    assert history is not None
    clicked = {user: set[int]() for user in range(len(state.users))}
    owners = state.users.positions(np.repeat(history.user_id, np.diff(history.positive_offsets)))
    for user, item in zip(owners, state.items.positions(history.positives), strict=True):
        clicked[int(user)].add(int(item))
    positive = events.outcome
    of_day = state.users.positions(events.user_id[positive])
    for user, item in zip(of_day, state.items.positions(events.item_id[positive]), strict=True):
        clicked[int(user)].add(int(item))
    num_dropped = 0
    for user, ranking in zip(users, rankings(parent, users.tolist()), strict=True):
        ranked = set(ranking[10:30])
        assert set(lists.list_at(user).tolist()) == ranked - clicked[int(user)]
        num_dropped += len(ranked & clicked[int(user)])
    assert num_dropped > 0
    next_generation = ModelStore(project.data_path).open()
    assert next_generation.manifest.parent == parent.name


def test_losses_are_compared_with_them(project: Project) -> None:
    found = compare_losses(project, "g-000001")
    assert next(found).examples_per_s > 0
