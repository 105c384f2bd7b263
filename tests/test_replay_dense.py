"""Increments of all parameters, a study of the replay benchmark: served as they are learned."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from test_replay_live import FIRST, FROZEN, LAST, LEARNS, generations, log, project, stream
from twotower.config import Project
from twotower.publishing.generation import Generation
from twotower.replay import ReplayedLog
from twotower.replay.live import replay_live, stream_examples
from twotower.replay.served import ServedVectors
from twotower.replay.stream import LiveStream

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from replay_dense import DenseStudy

__all__ = ["FIRST", "FROZEN", "LAST", "generations", "log", "project", "stream"]


def test_a_model_that_learned_nothing_is_served_as_its_generation(
    project: Project, log: ReplayedLog, stream: LiveStream, generations: Sequence[Generation]
) -> None:
    study, part = DenseStudy(project), np.flatnonzero(stream.questions.is_scored)
    served = study.make_served(generations[0], log)
    update = study.make_learner(generations[0])
    plain = ServedVectors(generations[0], log)
    served.apply(update.take_delta_rows(), new_items=False)
    vectors = served.user_vectors(stream.questions, part)
    np.testing.assert_allclose(vectors, plain.user_vectors(stream.questions, part), atol=1e-5)
    np.testing.assert_array_equal(served.is_served, plain.is_served)
    np.testing.assert_allclose(served.item_vectors, plain.item_vectors, atol=1e-5)
    np.testing.assert_allclose(served.popularity, plain.popularity, atol=1e-5)


def test_every_parameter_learns_and_is_served(
    project: Project, log: ReplayedLog, stream: LiveStream, generations: Sequence[Generation]
) -> None:
    study = DenseStudy(project)
    study.make_served(generations[0], log)
    update = study.make_learner(generations[0])
    before = {name: np.array(values) for name, values in update.state.arrays().items()}
    update.learn(stream_examples(log, stream))
    moved = {
        name for name, values in update.state.arrays().items()
        if name.startswith(("dense.", "table."))
        and not np.array_equal(values[: len(before[name])], before[name])
    }  # fmt: skip
    for kind in ("dense.user_tower", "dense.item_tower", "table.history", "table.item_id"):
        assert any(name.startswith(kind) for name in moved), kind
    dense = replay_live(
        log, stream, generations, LEARNS, study.make_learner, make_served=study.make_served
    )
    rows = replay_live(log, stream, generations, FROZEN, study.make_learner)
    assert (dense.rank != rows.rank).any()
    assert dense.deltas_published > 0


@pytest.mark.parametrize("is_dense", [False, True])
def test_a_question_is_asked_before_its_click_is_learned(
    project: Project,
    log: ReplayedLog,
    stream: LiveStream,
    generations: Sequence[Generation],
    is_dense: bool,
) -> None:
    """Until the first delta the generation answers, whoever learns."""
    study = DenseStudy(project)
    make_served = study.make_served if is_dense else ServedVectors
    served = make_served(generations[0], log)
    first = np.flatnonzero(stream.questions.is_scored)[:5]
    expected = ServedVectors(generations[0], log).ranks(stream.questions, first)
    np.testing.assert_array_equal(served.ranks(stream.questions, first), expected)
