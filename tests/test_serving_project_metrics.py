"""What `/metrics` reads from the project's files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector_project import as_lines
from day_events import rows_over, shown
from serving_project import USERS, publish_marked
from twotower.data.event_log import EventLogSettings
from twotower.data.event_log.intake import Intake
from twotower.data.example_log.manifest import ExampleManifest, examples_path, write_manifest
from twotower.publishing.delta import DeltaSpan
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.store import ModelStore
from twotower.serving.project_metrics import ProjectMetrics
from twotower.serving.retriever import Retriever

NOW_MS = 1_800_000_000_000


def samples(metrics: ProjectMetrics) -> dict[tuple[str, ...], float]:
    """Sample name and label values, sorted by label -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def named(found: dict[tuple[str, ...], float]) -> set[str]:
    return {name for name, *_ in found}


def test_a_project_without_anything_has_only_readable_files(tmp_path: Path) -> None:
    found = samples(ProjectMetrics(tmp_path))
    assert named(found) == {"twotower_unreadable_files"}
    assert set(found.values()) == {0}
    assert list(tmp_path.iterdir()) == []  # whoever only reads makes nothing


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations, the first live."""
    data_path = tmp_path_factory.mktemp("published")
    store = ModelStore(data_path)
    names = [publish_marked(store, number) for number in (1, 2)]
    store.activate(names[0], force=True)
    return data_path


def test_gates_of_the_live_and_of_the_candidate(published: Path) -> None:
    store = ModelStore(published)
    found = samples(ProjectMetrics(published))
    for name, side in (("g-000001", "live"), ("g-000002", "candidate")):
        gates = store.open(name).manifest.gates
        assert any(gate.measured for gate in gates)
        for gate in gates:
            assert found["twotower_gate_passed", side, gate.gate] == float(gate.passed)
            measured = found.get(("twotower_gate_metric", side, gate.gate))
            assert measured == gate.measured
            if measured is not None:
                assert found["twotower_gate_bar", side, gate.gate] == gate.bar


def test_a_candidate_that_goes_live_is_none_any_more(published: Path) -> None:
    metrics = ProjectMetrics(published)
    store = ModelStore(published)
    assert ("twotower_gate_passed", "candidate", "finite") in samples(metrics)
    store.activate("g-000002", force=True)
    found = samples(metrics)
    assert ("twotower_gate_passed", "candidate", "finite") not in found
    assert ("twotower_gate_passed", "live", "finite") in found
    store.roll_back()


def test_the_last_success_of_full_updates_and_of_deltas(published: Path) -> None:
    metrics, name = ProjectMetrics(published), "twotower_trainer_last_success_timestamp_seconds"
    found = samples(metrics)
    assert abs(found[name, "full"] - time.time()) < 3600
    assert (name, "delta") not in found
    retriever = Retriever.open(published)
    span = DeltaSpan(first_offset=0, through_offset=41, newest_event_time_ms=NOW_MS - 60_000)
    write_delta(
        published, retriever.base, rows_over(retriever, users=USERS[:1]), span, now_ms=NOW_MS
    )
    assert samples(metrics)[name, "delta"] == NOW_MS / 1000
    joined = ExampleManifest(
        user_id_kind="int", item_id_kind="int", event_offset=7, end=0, counts={"too_late": 3}
    )
    examples_path(published).mkdir()
    write_manifest(examples_path(published), joined)
    found = samples(metrics)
    assert found["twotower_trainer_examples_total",] == 41
    assert found["twotower_events_late_total",] == 3


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[ProjectMetrics]:
    with contextlib.closing(ProjectMetrics(tmp_path)) as opened:
        yield opened


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with Intake(tmp_path, EventLogSettings()) as opened:
        yield opened


def test_events_are_counted_by_their_fate_whoever_stored_them(
    intake: Intake, metrics: ProjectMetrics, tmp_path: Path
) -> None:
    events = [shown(number, USERS[0], USERS[1]) for number in range(5)]
    intake.take(as_lines(events), NOW_MS)
    intake.take(as_lines(events[:2]), NOW_MS)
    other = msgspec.structs.replace(events[0], item_id=USERS[2])
    intake.take(as_lines([other]) + b'{"kind": "impression"}\nno JSON\n', NOW_MS)
    found = samples(metrics)
    assert found["twotower_events_accepted_total",] == 5
    assert found["twotower_events_duplicate_total",] == 2
    assert found["twotower_events_rejected_total", "conflict"] == 1
    assert found["twotower_events_rejected_total", "invalid"] == 2
    assert ("twotower_events_rejected_total", "duplicate") not in found
    files = (tmp_path / "events").iterdir()
    assert found["twotower_event_log_bytes",] == sum(path.stat().st_size for path in files) > 0
    examples_path(tmp_path).mkdir()
    joined = ExampleManifest(user_id_kind="int", item_id_kind="int", event_offset=3)
    write_manifest(examples_path(tmp_path), joined)
    assert samples(metrics)["twotower_join_lag_events",] == 2


def test_a_damaged_file_is_named_and_hides_no_other(
    intake: Intake, metrics: ProjectMetrics, tmp_path: Path
) -> None:
    intake.take(as_lines([shown(1, USERS[0], USERS[1])]), NOW_MS)
    examples_path(tmp_path).mkdir()
    (examples_path(tmp_path) / "manifest.json").write_text("{")
    found = samples(metrics)
    unreadable = {part for (name, *rest), value in found.items() for part in rest if value == 1
                  if name == "twotower_unreadable_files"}  # fmt: skip
    assert unreadable == {"examples"}
    assert found["twotower_events_accepted_total",] == 1
