"""Increments over the live generation: stored with their offset, published in order, resumed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from increment_project import (
    append_examples,
    increment_project,
    poisoned,
    publish_tiny,
    some_examples,
)
from twotower.config import Project, load_project
from twotower.data.example_log import ExampleLog
from twotower.data.example_log.manifest import examples_path
from twotower.data.ids import IdKind
from twotower.errors import GateRefused, NotReady
from twotower.increment_runs import catch_up, publish_learned, run_increment
from twotower.increment_stop import increments_folder, read_stop
from twotower.increments import Increments, begin_update
from twotower.publishing.delta import list_deltas, read_deltas
from twotower.publishing.delta_rows import DeltaRows, merge_rows
from twotower.publishing.store import ModelStore
from twotower.training.increment.durable_update import DurableUpdate

Arrays = dict[str, npt.NDArray[Any]]


def learned_arrays(project: Project) -> Arrays:
    """Everything that the stored increments over the live generation know."""
    with Increments.open(project, ModelStore(project.data_path).open()) as running:
        return {name: np.array(a) for name, a in running.state.update.state.arrays().items()}


def published_rows(project: Project, name: str | None = None) -> DeltaRows:
    base = ModelStore(project.data_path).open(name)
    deltas = [delta.rows for delta in read_deltas(project.data_path, base)]
    merged = deltas[0]
    for rows in deltas[1:]:
        merged = merge_rows(merged, rows)
    return merged


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name, strict=True)


def assert_same_rows(found: DeltaRows, expected: DeltaRows) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["int", "str"])
@pytest.mark.parametrize("rows", ["user", "user_and_item"])
def test_a_run_publishes_what_the_stream_moved(tmp_path: Path, kind: IdKind, rows: str) -> None:
    project = increment_project(tmp_path, kind=kind, more=f'rows = "{rows}"')
    (delta,) = run_increment(project, clock=lambda: 7.0)
    assert (delta.manifest.span.first_offset, delta.manifest.span.through_offset) == (0, 200)
    assert delta.manifest.span.newest_event_time_ms == 1_651_420_800_000 + 199_000
    assert delta.manifest.created_at_ms == 7000
    counts = delta.manifest.counts
    assert counts["examples"] == 200
    assert counts["trained"] == counts["positives"] > 100
    assert (counts["admitted_users"], counts["over_limit"]) == (5, 0)
    update = begin_update(project, ModelStore(project.data_path).open())
    log = ExampleLog.open(project.data_path)
    for start in range(0, 200, 40):
        update.learn(log.read(start, 40))
    assert_same_rows(delta.rows, update.take_delta_rows())
    assert bool(len(delta.rows.item_ids)) == (rows == "user_and_item")


def test_a_later_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    project = increment_project(tmp_path, examples=80)
    run_increment(project)
    assert run_increment(project) == [], "nothing new is nothing to publish"
    append_examples(project, some_examples(120, first_offset=80))
    (second,) = run_increment(project)
    assert (second.sequence, second.manifest.span.first_offset) == (2, 80)
    whole = increment_project(tmp_path / "whole", examples=80)
    append_examples(whole, some_examples(120, first_offset=80))
    run_increment(whole)
    assert_equal(learned_arrays(project), learned_arrays(whole))
    assert_same_rows(published_rows(project), published_rows(whole))


def test_a_run_that_publishes_nothing_leaves_its_rows_to_the_next(tmp_path: Path) -> None:
    project = increment_project(tmp_path)
    with Increments.open(project, ModelStore(project.data_path).open()) as running:
        running.learn_all()
    delta = publish_learned(project)
    assert delta is not None
    assert delta.manifest.counts["examples"] == 200
    assert publish_learned(project) is None
    whole = increment_project(tmp_path / "whole")
    run_increment(whole)
    assert_same_rows(published_rows(project), published_rows(whole))


def test_a_delta_whose_process_was_killed_is_not_written_twice(tmp_path: Path) -> None:
    """The delta is there; the commit that would say so never came."""
    project = increment_project(tmp_path)
    with Increments.open(project, ModelStore(project.data_path).open()) as running:
        running.learn_all()
        running.publish()
    with Increments.open(project, ModelStore(project.data_path).open()) as running:
        assert running.state.published_offset == 200
        assert running.publish() is None


def test_state_that_is_lost_is_learned_anew_and_nothing_is_missing(tmp_path: Path) -> None:
    project = increment_project(tmp_path)
    run_increment(project)
    before = learned_arrays(project)
    folder = increments_folder(project.data_path, "g-000001")
    for path in folder.glob("*.part"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    append_examples(project, some_examples(40, first_offset=200))
    (delta,) = run_increment(project)
    assert (delta.sequence, delta.manifest.span.first_offset) == (2, 200)
    update = begin_update(project, ModelStore(project.data_path).open())
    log = ExampleLog.open(project.data_path)
    for start in range(0, 240, 40):
        update.learn(log.read(start, 40))
    assert_same_rows(delta.rows, update.take_delta_rows())
    assert len(before["users.ids"]) == len(learned_arrays(project)["users.ids"])


def test_a_changed_setting_begins_anew_at_the_cut(tmp_path: Path) -> None:
    project = increment_project(tmp_path, more="user_limit = 100")
    run_increment(project)
    changed = increment_project(tmp_path / "other", more="user_limit = 3")
    run_increment(changed)
    text = (tmp_path / "twotower.toml").read_text().replace("user_limit = 100", "user_limit = 3")
    (tmp_path / "twotower.toml").write_text(text)
    project = load_project(project.path)
    run_increment(project)
    assert_equal(learned_arrays(project), learned_arrays(changed))


def test_many_commits_become_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.increments._LEAST_WHOLE_BYTES", 20_000)
    project = increment_project(tmp_path, examples=1000)
    run_increment(project)
    names = sorted(p.name for p in increments_folder(project.data_path, "g-000001").glob("0*"))
    assert len(names) < 12
    assert any(name.endswith(".whole") for name in names)
    monkeypatch.setattr("twotower.increments._LEAST_WHOLE_BYTES", 1 << 30)
    plain = increment_project(tmp_path / "plain", examples=1000)
    run_increment(plain)
    assert len([*increments_folder(plain.data_path, "g-000001").glob("*.part")]) == 25
    assert_equal(learned_arrays(project), learned_arrays(plain))


def test_rows_that_were_never_stored_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the offset is stored before the rows that it changed."""
    project = increment_project(tmp_path)
    run_increment(project)
    faulty = increment_project(tmp_path / "faulty")
    learn = DurableUpdate.learn

    def store_first(self: DurableUpdate, examples: Any) -> Any:
        untouched = {k: np.array(v) for k, v in self.update.state.arrays().items()}
        learned = learn(self, examples)
        for name in ("user_id", "item_id"):
            weight = self.update.state.model.tables[name].weight
            old = untouched[f"table.{name}.weight"]
            weight[: len(old)].copy_(__import__("torch").from_numpy(old))
        return learned

    monkeypatch.setattr(DurableUpdate, "learn", store_first)
    run_increment(faulty)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        assert_equal(learned_arrays(faulty), learned_arrays(project))


def test_a_loss_of_no_number_publishes_nothing_and_stores_nothing(tmp_path: Path) -> None:
    project = increment_project(tmp_path, examples=80)
    run_increment(project)
    append_examples(project, some_examples(120, first_offset=80))
    text = project.path.read_text().replace("learning_rate = 0.2", "learning_rate = 1e38")
    project.path.write_text(text)
    with pytest.raises(GateRefused, match=r"expected finite .* the last delta stays live"):
        run_increment(load_project(project.path), clock=lambda: 9.0)
    assert len(list_deltas(project.data_path, "g-000001")) == 1
    assert not [*increments_folder(project.data_path, "g-000001").glob("*.part")]
    stopped = read_stop(project.data_path, "g-000001")
    assert stopped is not None
    assert (stopped.offset, stopped.at_ms) == (0, 9000)
    assert "the last delta stays live; lower $.increment.learning_rate" in stopped.reason
    run_increment(project)
    assert read_stop(project.data_path, "g-000001") is None, "it goes on"


def test_a_following_run_waits_for_the_next_generation_where_a_loss_explodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither ends, to be started again to the same end, nor learns the same once more."""
    project = increment_project(tmp_path, more="publish_every_s = 0.001", base=poisoned())
    stop, stopped = threading.Event(), list[bool]()

    def wait(seconds: float) -> bool:
        live = ModelStore(project.data_path).open().name
        stopped.append(read_stop(project.data_path, live) is not None)
        if len(stopped) == 6:
            publish_tiny(project, seed=1)
        if list_deltas(project.data_path, "g-000002"):
            stop.set()
        assert len(stopped) < 20
        return stop.is_set()

    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stop, "wait", wait)
        (delta,) = run_increment(project, follow=True, stop=stop)
    assert delta.manifest.base == "g-000002"
    assert stopped[1:6] == [True] * 5
    assert list_deltas(project.data_path, "g-000001") == []
    said = [record.getMessage() for record in caplog.records]
    refused = [line for line in said if line.startswith("increments_stopped base='g-000001'")]
    assert len(refused) == 1


def test_what_is_waited_for_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = increment_project(tmp_path, examples=30)
    examples, aside = examples_path(project.data_path), tmp_path / "aside"
    examples.rename(aside)
    stop, looks = threading.Event(), list[int]()

    def wait(seconds: float) -> bool:
        looks.append(1)
        if len(looks) == 3:
            aside.rename(examples)
        if len(looks) == 5:
            examples.rename(aside)
            publish_tiny(project, seed=1)
        if len(looks) == 8:
            stop.set()
        return stop.is_set()

    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stop, "wait", wait)
        run_increment(project, follow=True, stop=stop)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if line.startswith("waiting")]) == 2


def test_one_process_learns_over_a_generation(tmp_path: Path) -> None:
    project = increment_project(tmp_path)
    generation = ModelStore(project.data_path).open()
    with (
        Increments.open(project, generation),
        pytest.raises(NotReady, match="learning increments over g-000001"),
    ):
        run_increment(project)


def test_without_joined_examples_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "twotower.toml").write_text(
        'config_version = 1\n[events]\nfiles = "a.csv"\n'
        'user_id = "u"\nitem_id = "i"\ntime = { column = "t", unit = "s" }\n'
    )
    project = load_project(tmp_path / "twotower.toml")
    publish_tiny(project)
    with pytest.raises(NotReady, match="twotower join"):
        run_increment(project)
    catch_up(project, ModelStore(project.data_path).open())
    assert list_deltas(project.data_path, "g-000001") == []


def test_a_following_run_publishes_when_it_is_time(tmp_path: Path) -> None:
    project = increment_project(tmp_path, examples=30, more="publish_every_s = 60.0")
    now = [1000.0]
    generation = ModelStore(project.data_path).open()
    with Increments.open(project, generation, clock=lambda: now[0]) as running:
        assert running.tick() is None
        assert running.state.offset == 0, "a portion is learned when it is full"
        append_examples(project, some_examples(30, first_offset=30))
        assert running.tick() is None
        assert running.state.offset == 40
        now[0] += 60
        delta = running.tick()
        assert delta is not None
        assert delta.manifest.span.through_offset == 60, "all that is there, when it is time"
        now[0] += 59
        append_examples(project, some_examples(10, first_offset=60))
        assert running.tick() is None
        now[0] += 1
        assert running.tick() is not None


def test_a_following_run_ends_with_a_last_delta(tmp_path: Path) -> None:
    project = increment_project(tmp_path, examples=30)
    stop = threading.Event()
    stop.set()
    assert run_increment(project, follow=True, stop=stop) == []
    stop.clear()
    ticks = []

    def clock() -> float:
        ticks.append(1)
        if len(ticks) > 3:
            stop.set()
        return float(len(ticks))

    (delta,) = run_increment(project, follow=True, stop=stop, clock=clock)
    assert delta.manifest.span.through_offset == 30
