"""The loop in simulated time: every day is predicted by what was known before it."""

from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from toy import NUM_ITEMS, write_project
from twotower.baselines import BaselineSettings
from twotower.cli.app import app
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.evaluation import evaluate, mean_over_days
from twotower.publishing.store import ModelStore
from twotower.replay import (
    BASELINES,
    ReplayedLog,
    generation_scorer,
    replay_nights,
    score_baselines,
)
from twotower.serving.retriever import Retriever
from twotower.training.settings import LossName

FIRST, LAST = "2024-03-02", "2024-03-04"
SMALL = BaselineSettings(
    als=msgspec.structs.replace(BaselineSettings().als, factors=4, num_threads=1)
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = write_project(tmp_path_factory.mktemp("replay"), num_days=4)
    import_tables(made)
    return made


@pytest.fixture(scope="module")
def log(project: Project) -> ReplayedLog:
    return ReplayedLog(ImportedData.open(project.data_path))


def test_a_day_knows_the_days_before_it_and_nothing_else(log: ReplayedLog) -> None:
    days = list(log.days(FIRST, LAST))
    assert [day.day for day in days] == ["2024-03-02", "2024-03-03", "2024-03-04"]
    for number, day in enumerate(days, start=1):
        assert day.known.day.max() == number - 1
        begins = log.data.day_entry(day.day).start_ms
        assert day.known.event_time_ms.max() < begins
        pairs = set(zip(day.truth.targets.owners(), day.truth.targets.values, strict=True))
        hidden = set(zip(day.truth.excluded.owners(), day.truth.excluded.values, strict=True))
        assert not pairs & hidden


def test_nights_run_in_order_and_beat_popularity(project: Project, log: ReplayedLog) -> None:
    nights = list(replay_nights(project, log, FIRST, LAST))
    manifests = [night.generation.manifest for night in nights]
    assert [m.window.through_day for m in manifests] == ["2024-03-01", "2024-03-02", "2024-03-03"]
    assert [m.parent for m in manifests] == ["g-000001", "g-000002", "g-000003"]
    ours = mean_over_days([night.evaluation for night in nights])["recall_at_20"]
    scored = [score_baselines(night.day, SMALL) for night in nights]
    assert set(scored[0]) == set(BASELINES)
    theirs = mean_over_days([day["popularity"] for day in scored])["recall_at_20"]
    assert ours > 1.5 * theirs


def test_a_generation_is_scored_as_it_answers(project: Project, log: ReplayedLog) -> None:
    if ModelStore(project.data_path).live() is None:
        list(replay_nights(project, log, FIRST, FIRST))
    generation = ModelStore(project.data_path).open()
    users = log.users.positions(["u3", "u17"])
    scores = generation_scorer(generation, log)(users)
    retriever = Retriever(generation)
    for row, user in enumerate(["u3", "u17"]):
        answer = retriever.retrieve(user, NUM_ITEMS, include_seen=True)
        expected = log.items.decode(np.argsort(-scores[row], kind="stable"))
        assert [c.item_id for c in answer.candidates][:5] == expected[:5]


def test_a_user_the_generation_never_saw_is_scored_as_nobody(tmp_path: Path) -> None:
    project = write_project(tmp_path, num_days=2)
    without_table = msgspec.structs.replace(project, users=None, history=None)
    rows = (tmp_path / "events.csv").read_text().splitlines()
    late = rows[-1].split(",")
    rows += [f"newcomer,4,{int(late[2]) + 1},1"]
    (tmp_path / "events.csv").write_text("\n".join(rows))
    import_tables(without_table)
    log = ReplayedLog(ImportedData.open(project.data_path))
    (night,) = replay_nights(without_table, log, FIRST, FIRST)
    score = generation_scorer(night.generation, log)
    found = score(log.users.positions(["newcomer", "u3"]))
    answer = Retriever(night.generation).retrieve("newcomer", 1)
    assert answer.degraded == ["unknown_user"]
    assert log.items.decode([int(found[0].argmax())]) == [answer.candidates[0].item_id]
    assert not np.array_equal(found[0], found[1])
    assert len(evaluate(night.day.truth, score).users) == len(night.day.truth.users)


def test_the_losses_are_compared_on_one_day(project: Project, log: ReplayedLog) -> None:
    if ModelStore(project.data_path).live() is None:
        list(replay_nights(project, log, FIRST, FIRST))
    before = ModelStore(project.data_path).names()
    command = ["compare-losses", "--generation", "g-000001", "-c", str(project.path)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    losses = get_args(LossName)
    assert [loss for loss in losses if loss not in shown.output] == []
    rows = msgspec.json.decode(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [row["scored_day"] for row in rows] == ["2024-03-02"] * len(losses)
    assert ModelStore(project.data_path).names() == before


def test_full_from_the_command_line(tmp_path: Path) -> None:
    project = write_project(tmp_path, num_days=2)
    run = CliRunner()
    early = run.invoke(app, ["full", "-c", str(project.path)])
    assert early.exit_code != 0
    assert run.invoke(app, ["import", "-c", str(project.path)]).exit_code == 0
    done = run.invoke(app, ["full", "-c", str(project.path), "--day", "2024-03-02"])
    assert done.exit_code == 0, done.output
    assert "g-000002 is live" in done.output
    again = run.invoke(app, ["full", "-c", str(project.path), "--day", "2024-03-02"])
    assert again.exit_code != 0
