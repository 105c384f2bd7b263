"""Which days a night trains: nothing twice, nothing left out unseen, whatever came between."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from toy import write_project
from twotower.checkpoint import Checkpoint, Window
from twotower.cli import app as cli
from twotower.config import Project, load_project
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.errors import GateRefused, LineageError
from twotower.nightly import plan_night, run_night, start_lineage
from twotower.publishing.day_items import add_items, withdraw_items
from twotower.publishing.encoding import Encoder
from twotower.publishing.item_overlay import read_item_vectors
from twotower.publishing.item_register import DayItem
from twotower.publishing.manifest import Manifest
from twotower.publishing.store import ModelStore
from twotower.training.window import open_window

DAYS = ("2024-03-01", "2024-03-02", "2024-03-03", "2024-03-04")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project with its first day live; three more are imported."""
    folder = tmp_path_factory.mktemp("lineage")
    project = write_project(folder, num_days=4)
    import_tables(project)
    run_night(project)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Project:
    return load_project(shutil.copytree(template, tmp_path / "project") / "twotower.toml")


def live(project: Project) -> Manifest:
    return ModelStore(project.data_path).open().manifest


def positives(project: Project, *days: str) -> int:
    data = ImportedData.open(project.data_path)
    return sum(data.day_entry(day).positives for day in days)


def test_items_of_the_day_go_live_with_the_night(project: Project) -> None:
    register = [DayItem(item_id=9_000_000 + number) for number in range(3)]
    store = ModelStore(project.data_path)
    add_items(project.data_path, store.open(), Encoder.of(store.open()), register)
    gone = int(ImportedData.open(project.data_path).day(DAYS[1]).item_id.astype(np.int64)[0])
    withdraw_items(project.data_path, Encoder.of(store.open()), [gone])
    generation = store.open(run_night(project).generation)
    found = read_item_vectors(project.data_path, generation, 1)
    assert found is not None
    assert found.item_ids.tolist() == [9_000_000, 9_000_001, 9_000_002]
    encoder = Encoder.of(generation)
    position = int(encoder.items.positions([gone])[0])
    assert position >= 0
    assert position not in generation.array("corpus.npy")


def drop_days(project: Project, *days: str) -> None:
    """Import again, as if the log had nothing of these days."""
    events = project.root / "events.csv"
    first_s = 1_709_251_200
    gone = {(int(day[-2:]) - 1) for day in days}
    header, *lines = events.read_text().splitlines()
    kept = [line for line in lines if (int(line.split(",")[2]) - first_s) // 86_400 not in gone]
    events.write_text("\n".join([header, *kept]) + "\n")
    import_tables(project)


def refuse_everything(project: Project) -> Project:
    gates = msgspec.structs.replace(project.publishing.gates, max_mean_cosine=0.0)
    return msgspec.structs.replace(
        project, publishing=msgspec.structs.replace(project.publishing, gates=gates)
    )


def test_a_refused_night_is_trained_with_the_next_one(project: Project) -> None:
    before = live(project)
    with pytest.raises(GateRefused):
        run_night(refuse_everything(project), DAYS[1])
    assert live(project) == before
    run_night(project, DAYS[2])
    after = live(project)
    assert (after.parent, after.window.from_day, after.window.through_day) == (
        before.name,
        DAYS[1],
        DAYS[2],
    )
    assert after.trained.rows == positives(project, DAYS[1], DAYS[2])
    assert after.trained.distinct_event_ids == after.trained.rows


class RollBack:
    """Progress that rolls back while the night trains, as an operator might."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
        self._store.roll_back(reason="bad answers")

    def advance(self, count: int = 1, **figures: float) -> None:
        pass

    def end(self) -> None:
        pass


def test_a_night_does_not_undo_what_was_decided_while_it_trained(project: Project) -> None:
    store = ModelStore(project.data_path)
    with pytest.raises(LineageError, match=r"found 'g-000001', activation 3, which stays live"):
        run_night(project, progress=RollBack(store))
    assert live(project).name == "g-000001"
    assert store.names()[-1] == "g-000003"  # published, for whoever wants it all the same
    following = run_night(project)
    assert following.sequence == 4
    assert live(project).parent == "g-000001"


def test_a_night_that_was_rolled_back_is_trained_with_the_next_one(project: Project) -> None:
    parent = live(project)
    run_night(project, DAYS[1])
    rolled_back = live(project)
    ModelStore(project.data_path).roll_back(reason="complaints")
    assert plan_night(project).from_day == DAYS[1]
    run_night(project, DAYS[2])
    after = live(project)
    assert (after.parent, after.window.from_day) == (parent.name, DAYS[1])
    assert after.name not in (parent.name, rolled_back.name)
    assert after.trained.rows == positives(project, DAYS[1], DAYS[2])


def test_a_bad_day_is_left_out_by_name_and_for_good(project: Project) -> None:
    run_night(project, DAYS[2], skip=[DAYS[1]])
    after = live(project)
    assert after.window.skipped == (DAYS[1],)
    assert (after.window.from_day, after.trained.rows) == (DAYS[2], positives(project, DAYS[2]))
    with pytest.raises(LineageError, match="trained already"):
        run_night(project, DAYS[1])
    assert plan_night(project).from_day == DAYS[3]


def test_a_missing_day_is_a_gap_unless_it_is_skipped(project: Project) -> None:
    drop_days(project, DAYS[1])
    before = live(project)
    message = f"no events of {DAYS[1]};.*live generation is unchanged.*--skip {DAYS[1]}"
    for through in (None, DAYS[2], DAYS[3]):
        with pytest.raises(LineageError, match=message):
            run_night(project, through)
    assert live(project) == before
    run_night(project, skip=[DAYS[1]])
    assert live(project).window.skipped == (DAYS[1],)
    run_night(project)
    assert (live(project).window.from_day, live(project).window.skipped) == (DAYS[3], ())


def test_every_missing_day_is_named(project: Project) -> None:
    drop_days(project, DAYS[1], DAYS[2])
    with pytest.raises(LineageError, match=f"{DAYS[1]}, {DAYS[2]}") as refusal:
        run_night(project, DAYS[3])
    assert refusal.value.exit_code == 1


@pytest.mark.parametrize("skip", [DAYS[0], DAYS[2], DAYS[3], "2024-02-01"])
def test_only_a_day_of_the_window_before_its_last_can_be_skipped(
    project: Project, skip: str
) -> None:
    with pytest.raises(LineageError, match="expected to skip days from"):
        run_night(project, DAYS[2], skip=[skip])


def test_a_day_is_trained_once(project: Project) -> None:
    for through in (DAYS[0], "2024-02-28"):
        with pytest.raises(LineageError, match=r"trained already|expected an imported day"):
            run_night(project, through)


@pytest.mark.parametrize(("zone", "what"), [("Asia/Tokyo", "overlap"), ("America/Lima", "a gap")])
def test_days_that_do_not_join_at_the_cut_are_refused(
    project: Project, zone: str, what: str
) -> None:
    moved = msgspec.structs.replace(project, time_zone=zone)
    import_tables(moved)
    with pytest.raises(LineageError, match=f"would .*{what}; was time_zone changed"):
        run_night(moved, DAYS[1])


def test_the_command_line_plans_and_skips(project: Project) -> None:
    words = ["full", "--day", DAYS[2], "--config", str(project.path)]
    planned = CliRunner().invoke(cli.app, [*words, "--dry-run", "--skip", DAYS[1]])
    assert planned.exit_code == 0, planned.output
    assert f"dry run: {DAYS[2]} to {DAYS[2]}, without {DAYS[1]}" in planned.stdout
    assert live(project).window.through_day == DAYS[0]
    done = CliRunner().invoke(cli.app, ["-q", *words, "--skip", DAYS[1]])
    assert done.exit_code == 0, done.output
    assert live(project).window.skipped == (DAYS[1],)


def test_a_window_of_several_days_is_in_the_order_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write_project(tmp_path, num_days=3)
    import_tables(project)
    data = ImportedData.open(project.data_path)
    parent = Window(from_day=None, through_day=None, cut_ms=data.day_entry(data.days[0]).start_ms)
    late = data.day(data.days[0])
    moved = dataclasses.replace(late, event_time_ms=late.event_time_ms + 2 * 86_400_000)
    days = {data.days[0]: moved, data.days[1]: data.day(data.days[1])}
    monkeypatch.setattr(data, "day", days.__getitem__)
    events = open_window(data, parent, data.days[1]).events
    assert (np.diff(events.event_time_ms) >= 0).all()
    owner = dict(zip(moved.event_id.tolist(), moved.user_id.tolist(), strict=True))
    found = dict(zip(events.event_id.tolist(), events.user_id.tolist(), strict=True))
    assert all(found[event] == user for event, user in owner.items())


def test_an_altered_day_ends_in_exit_code_4_before_anything_is_trained(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    day = ImportedData.open(project.data_path).folder / "days" / f"{DAYS[1]}.parquet"
    content = bytearray(day.read_bytes())
    content[len(content) // 2] ^= 1
    day.write_bytes(content)
    before = live(project)
    monkeypatch.setattr(sys, "argv", ["twotower", "-q", "full", "--config", str(project.path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 4
    assert "altered since the import; nothing was read" in capsys.readouterr().err
    assert live(project) == before


class Stop(Exception):
    """What ends a run in the middle, as a kill would."""


class StopAfter(RollBack):
    """Progress that ends the run after some steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
        pass

    def advance(self, count: int = 1, **figures: float) -> None:
        self._left -= 1
        if self._left < 0:
            raise Stop


def stopped_base(folder: Path) -> Project:
    """A project whose base model was stopped after its fifth step and its save."""
    project = write_project(folder, num_days=1, training="save_every_steps = 1")
    import_tables(project)
    with pytest.raises(Stop):
        start_lineage(project, progress=StopAfter(6))
    assert (project.data_path / "work" / "base.pass").exists()
    return project


def assert_equal_bases(found: Checkpoint, expected: Checkpoint) -> None:
    for name, values in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], values, err_msg=name)
    assert found.meta.trained.loss == expected.meta.trained.loss


def test_a_stopped_base_model_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = stopped_base(tmp_path / "stopped")
    unstopped = write_project(tmp_path / "not", num_days=1, training="save_every_steps = 1")
    import_tables(unstopped)
    with caplog.at_level("INFO", logger="twotower"):
        assert_equal_bases(start_lineage(project), start_lineage(unstopped))
    resumed = [record for record in caplog.messages if record.startswith("resumed path=")]
    assert len(resumed) == 1
    assert [path.name for path in (project.data_path / "work").iterdir()] == [".night.lock"]


def test_the_save_of_another_import_is_no_beginning(tmp_path: Path) -> None:
    project = stopped_base(tmp_path / "stopped")
    history = project.root / "history.csv"
    swapped = history.read_text().replace("u1,", "u?,").replace("u2,", "u1,").replace("u?,", "u2,")
    history.write_text(swapped)
    import_tables(project)
    again = shutil.copytree(project.root, tmp_path / "again")
    shutil.rmtree(again / "twotower-data" / "work")
    assert_equal_bases(start_lineage(project), start_lineage(load_project(again / "twotower.toml")))
