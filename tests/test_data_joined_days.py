"""Streamed days: one event is one example of one day, however it came, and a night trains them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from toy import Size, write_project
from toy_lineage import ToyLineage
from twotower.config import Project, load_project
from twotower.data.days import ImportedData
from twotower.data.event_files import read_event_file
from twotower.data.event_log import open_event_log
from twotower.data.event_log.intake import Intake
from twotower.data.events import Event
from twotower.data.importing import import_tables
from twotower.data.joined_days import JoinedDays, open_days
from twotower.data.label_join.joiner import join_available
from twotower.data.label_join.settings import JoinSettings
from twotower.errors import DataError
from twotower.nightly import plan_night, run_night
from twotower.publishing.store import ModelStore

SMALL = Size(users=16, items=24, impressions=120)
DAYS = ("2024-03-01", "2024-03-02", "2024-03-03")
DAY_MS = 86_400_000
FIRST_MS = 1_709_251_200_000  # 1 March 2024 in UTC
NOON_MS = 12 * 3_600_000
END_MS = FIRST_MS + 3 * DAY_MS
OPEN_GATES = """
[publishing.gates]
confidence = 0.5
holdout_positives = 0
max_mean_cosine = 1.0
max_mean_user_cosine = 1.0
min_recognised = 0.0
max_coverage_loss = 1.0
max_recall_loss = 1.0
max_window_loss = 1.0
"""


def keep_rows(path: Path, first_ms: int, end_ms: int) -> None:
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))
    kept = [row for row in rows[1:] if first_ms <= int(row[2]) * 1000 < end_ms]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([rows[0], *kept])


def ingest(project: Project, file: Path, received_ms: int) -> None:
    """What `twotower ingest` does, at a time of ours."""
    data = ImportedData.open(project.data_path)
    with Intake(project.data_path, project.event_log, None) as intake:
        kinds = (data.user_id_kind, data.item_id_kind)
        rows = read_event_file(file, project.events, "UTC", None, received_ms)
        assert kinds == ("str", "int")
        assert not intake.take_rows(rows, received_ms).rejected


def join(project: Project, now_ms: int | None, **changed: float) -> None:
    settings = JoinSettings(shard_examples=50, **changed)  # type: ignore[arg-type]
    with open_event_log(project.data_path) as log:
        join_available(project.data_path, log, settings, "UTC", now_ms)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ImportedData:
    """All three days imported: the truth."""
    project = write_project(tmp_path_factory.mktemp("whole"), size=SMALL)
    import_tables(project)
    return ImportedData.open(project.data_path)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Imported through noon of the second day; all of the second and third wait to be ingested."""
    project = write_project(tmp_path, size=SMALL)
    events = tmp_path / "events.csv"
    (tmp_path / "stream.csv").write_bytes(events.read_bytes())
    keep_rows(events, 0, FIRST_MS + DAY_MS + NOON_MS)
    keep_rows(tmp_path / "stream.csv", FIRST_MS + DAY_MS, END_MS)
    config = tmp_path / "twotower.toml"
    config.write_text(config.read_text() + OPEN_GATES)
    project = load_project(config)
    import_tables(project)
    return project


def test_a_day_is_the_same_imported_or_streamed_or_both(
    project: Project, whole: ImportedData, tmp_path: Path
) -> None:
    assert open_days(project.data_path).days == DAYS[:2]
    ingest(project, tmp_path / "stream.csv", END_MS)
    join(project, END_MS + DAY_MS)
    data = open_days(project.data_path)
    assert isinstance(data, JoinedDays)
    assert data.days == DAYS
    for day in DAYS:
        entry, truth = data.day_entry(day), whole.day_entry(day)
        for name in ("rows", "positives", "start_ms", "end_ms", "outside_rows", "eliminated"):
            assert getattr(entry, name) == getattr(truth, name), (day, name)
        found, expected = data.day(day), whole.day(day)
        assert len(np.unique(found.event_id)) == len(found) == entry.rows
        order = np.lexsort((expected.item_id, expected.user_id, expected.event_time_ms))
        its_order = np.lexsort((found.item_id, found.user_id, found.event_time_ms))
        for name in ("user_id", "item_id", "event_time_ms", "outcome"):
            assert (getattr(found, name)[its_order] == getattr(expected, name)[order]).all()
        assert (np.diff(found.event_time_ms) >= 0).all()


def test_a_day_exists_when_it_was_cut(project: Project, tmp_path: Path) -> None:
    ingest(project, tmp_path / "stream.csv", END_MS)
    join(project, None)
    data = open_days(project.data_path)
    assert data.days == DAYS[:2], "the third day is not over"
    with pytest.raises(DataError, match="neither imported nor ended in the stream"):
        data.day(DAYS[2])
    digest = data.digest
    join(project, END_MS + DAY_MS)
    assert open_days(project.data_path).days == DAYS
    assert open_days(project.data_path).digest != digest


def test_a_day_that_is_streaming_is_not_trained_as_it_was_imported(
    project: Project, tmp_path: Path
) -> None:
    keep_rows(tmp_path / "stream.csv", 0, FIRST_MS + DAY_MS + NOON_MS)
    ingest(project, tmp_path / "stream.csv", END_MS)
    join(project, None)
    assert open_days(project.data_path).days == DAYS[:1]


def test_nights_train_imported_and_streamed_days_once(
    project: Project, whole: ImportedData, tmp_path: Path
) -> None:
    ingest(project, tmp_path / "stream.csv", END_MS)
    join(project, END_MS + DAY_MS)
    store = ModelStore(project.data_path)
    cuts = {DAYS[0]: 0} | dict(open_days(project.data_path)._log.cuts)  # type: ignore[attr-defined]
    for day in DAYS:
        assert plan_night(project).through_day == day
        live = store.open(run_night(project).generation)
        assert live.manifest.window.through_day == day
        assert live.manifest.trained.rows == whole.day_entry(day).positives
        assert live.manifest.window.example_offset == cuts[day]
    assert cuts[DAYS[2]] > cuts[DAYS[1]] > 0


def test_a_late_positive_trains_with_its_weight_in_the_day_that_emits_it(tmp_path: Path) -> None:
    learned = []
    for weight in (1.0, 50.0):
        project = write_project(tmp_path / str(weight), num_days=1, size=SMALL)
        lineage = ToyLineage(project)
        store_late_click(project)
        join(project, END_MS, late_positive_weight=weight)
        lineage.data = open_days(project.data_path)
        assert lineage.data.days == DAYS[:2]
        day = lineage.data.day(DAYS[1])
        assert day.outcome.tolist() == [True, True, True]
        assert day.weights().tolist() == [weight, 1, 1]
        assert day.event_time_ms[0] == FIRST_MS + DAY_MS - 500, "it keeps its time"
        assert lineage.data.day_entry(DAYS[1]).outside_rows == 1
        rows = ImportedData.open(project.data_path).day_entry(DAYS[0]).rows
        assert lineage.data.day_entry(DAYS[0]).rows == rows + 1, "its impression came in time"
        first = lineage.full(lineage.base, DAYS[0])
        learned.append(lineage.full(first, DAYS[1]))
    dense = [checkpoint.model.dense_parameters() for checkpoint in learned]
    assert any((dense[0][name] != dense[1][name]).any() for name in dense[0])


def store_late_click(project: Project) -> None:
    """An impression before midnight, its click long after it was emitted, and two other clicks."""
    midnight = FIRST_MS + DAY_MS

    def event(number: int, time_ms: int, outcome: str | None, item: int) -> Event:
        kind = "outcome" if outcome else "impression"
        values = {"user_id": "u1", "item_id": item, "request_id": f"r{item}"}
        return Event(
            kind=kind,  # type: ignore[arg-type]
            event_id=f"e{number}",
            event_time_ms=time_ms,
            outcome=outcome,
            **values,  # type: ignore[arg-type]
        )

    log = [
        event(0, midnight - 1000, None, 5),
        event(1, midnight + 2_000_000, None, 9),
        event(2, midnight + 2_001_000, "click", 9),
        event(3, midnight + 2_001_000, None, 13),
        event(4, midnight + 2_002_000, "click", 13),
        event(5, midnight - 500, "click", 5),
    ]
    with open_event_log(project.data_path) as stored:
        for one in log:
            stored.append([one], midnight + 2_010_000)
