"""The live days through real files: event log, join, shards, increments, deltas, retriever."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from toy import Size, write_project
from twotower.cli.app import app
from twotower.config import Project, load_project
from twotower.data.days import ImportedData
from twotower.data.import_copy import copy_days_before
from twotower.data.importing import import_tables
from twotower.errors import ConfigError, DataError
from twotower.increments import begin_update
from twotower.publishing.store import ModelStore
from twotower.replay import ReplayedLog
from twotower.replay.live import replay_live
from twotower.replay.pipeline import replay_pipeline
from twotower.replay.run import ReplayRequest, run_replay
from twotower.replay.staging import find_base, stage_project
from twotower.replay.strategies import Strategy
from twotower.replay.stream import open_stream

FIRST, LAST = "2024-03-03", "2024-03-04"
STREAM = """
[increment]
rows = "user_and_item"
learning_rate = 0.2
batch_size = 64
uniform = 16
loss_limit = 100.0
[publishing.gates]
holdout_positives = 0
"""
STRATEGIES = {
    "full_only": Strategy(nights=True, increments=False, publish_every_s=14_400),
    "full_and_increments": Strategy(nights=True, increments=True, publish_every_s=14_400),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("pipeline")
    write_project(folder, num_days=4, size=Size(impressions=500))
    config = folder / "twotower.toml"
    config.write_text(config.read_text() + STREAM)
    made = load_project(config)
    import_tables(made)
    return made


def test_an_import_is_copied_up_to_a_day(project: Project, tmp_path: Path) -> None:
    data = ImportedData.open(project.data_path)
    copied = copy_days_before(data, tmp_path, FIRST)
    assert copied.days == ("2024-03-01", "2024-03-02")
    assert copied.day_frame("2024-03-02").equals(data.day_frame("2024-03-02"))
    items, expected = copied.items(), data.items()
    assert items is not None
    assert expected is not None
    assert items.equals(expected)
    with pytest.raises(DataError, match="before 2024-03-01"):
        copy_days_before(data, tmp_path, "2024-03-01")


@pytest.mark.slow
def test_files_and_memory_give_the_same_ranks(project: Project, tmp_path: Path) -> None:
    """The whole pipeline against the schedule that hands examples over in memory."""
    log = ReplayedLog(ImportedData.open(project.data_path))
    stream = open_stream(log, FIRST, LAST, project.model.history_length)
    staged = stage_project(project, tmp_path, FIRST)
    played = replay_pipeline(staged, log, stream, STRATEGIES, check_every=1)
    found = played.scores
    assert played.answers_checked == 2 * stream.questions.is_scored.sum()
    assert played.answers_differing == 0, "a retriever says the same"
    store = ModelStore(staged.data_path)
    generations = [store.open(name) for name in store.names()[-2:]]
    assert [g.manifest.window.through_day for g in generations] == ["2024-03-02", FIRST]
    for name, strategy in STRATEGIES.items():
        expected = replay_live(
            log,
            stream,
            generations,
            strategy,
            lambda generation: begin_update(staged, generation),
            join=staged.join,
        )
        np.testing.assert_array_equal(found[name].question, expected.question)
        np.testing.assert_array_equal(found[name].rank, expected.rank)
        np.testing.assert_allclose(found[name].freshness_s, expected.freshness_s)
        assert found[name].deltas_published == expected.deltas_published
    moved = found["full_and_increments"].rank != found["full_only"].rank
    assert moved.mean() > 0.3, "increments change what is served"


def test_a_replay_leaves_the_project_as_it_was(project: Project, tmp_path: Path) -> None:
    before = sorted(path for path in project.data_path.rglob("*"))
    request = ReplayRequest(
        first=LAST, strategies=("increments_only", "popularity_hours"), publish_every_s=(14_400.0,)
    )
    report = run_replay(project, request)
    assert sorted(path for path in project.data_path.rglob("*")) == before
    assert find_base(project, FIRST) is None
    assert report.days == (LAST,)
    assert list(report.strategies) == ["increments_only", "popularity_hours"]
    learned = report.strategies["increments_only"]
    assert learned.deltas_published >= 4
    assert learned.freshness_s is not None
    assert 0 < learned.freshness_s["p50"] <= learned.freshness_s["p99"] < 4 * 14_400
    assert learned.recall_at_50 > 0.5
    msgspec.json.encode(report)


def test_a_strategy_is_named_as_it_is(project: Project) -> None:
    with pytest.raises(ConfigError, match="did you mean 'full_only'"):
        run_replay(project, ReplayRequest(strategies=("full_onli",)))


def test_the_command_prints_a_table_json_and_a_picture(project: Project, tmp_path: Path) -> None:
    picture = tmp_path / "recall.png"
    given = ["replay", "-c", str(project.path), "--strategy", "popularity_previous_day"]
    given += ["--strategy", "popularity_hours", "--first", LAST]
    result = CliRunner().invoke(app, ["-q", *given, "--json", "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report["strategies"]) == {"popularity_previous_day", "popularity_hours"}
    assert picture.stat().st_size > 1000
    result = CliRunner().invoke(app, ["-q", *given])
    assert result.exit_code == 0, result.output
    assert "popularity_hours" in result.stdout
    assert "recall@50 over time" in result.stdout
