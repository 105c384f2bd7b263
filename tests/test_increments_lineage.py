"""Increments and the night: one swap, refused nights, roll-backs, what is served after a delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from increment_project import append_examples, increment_project, publish_tiny, some_examples
from stream import stream_of
from test_increments import assert_equal, learned_arrays, published_rows
from tiny_checkpoint import external_ids, tiny_checkpoint
from toy import write_project
from twotower.data.example_log import ExampleLog
from twotower.data.importing import import_tables
from twotower.errors import GateRefused, LineageError
from twotower.increment_runs import catch_up, run_increment
from twotower.increment_stop import increments_folder
from twotower.increments import begin_update
from twotower.index.settings import IndexSettings
from twotower.model.towers import Features, History
from twotower.nightly import prune_project, run_night
from twotower.publishing.delta import delta_folder, list_deltas, newest_delta, read_deltas
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever


def test_the_night_goes_live_with_its_catch_up_delta(tmp_path: Path) -> None:
    project = increment_project(tmp_path, more="publish_every_s = 60.0")
    run_increment(project)
    before = newest_delta(project.data_path, "g-000001")
    append_examples(project, some_examples(30, first_offset=200))
    name = publish_tiny(project, seed=1, activate=False)
    catch_up(project, ModelStore(project.data_path).open(name))
    after = newest_delta(project.data_path, name)
    assert before is not None
    assert after is not None
    assert after.span.through_offset == 230
    assert after.span.newest_event_time_ms >= before.span.newest_event_time_ms
    ModelStore(project.data_path).activate(name)
    retriever = Retriever.open(project.data_path)
    newest = [*read_deltas(project.data_path, ModelStore(project.data_path).open())]
    assert retriever.with_deltas(newest).overlay.newest_event_time_ms == 1_651_420_800_000 + 229_000
    append_examples(project, some_examples(10, first_offset=230))
    (delta,) = run_increment(project)
    assert (delta.manifest.base, delta.sequence) == (name, 2)
    assert delta.manifest.span.first_offset == 230


def test_a_night_learns_what_came_after_its_cut_before_it_goes_live(tmp_path: Path) -> None:
    project = write_project(tmp_path, num_days=2)
    import_tables(project)
    run_night(project, "2024-03-01")
    assert list_deltas(project.data_path, "g-000002") == [], "nothing is joined"
    users = [f"u{n % 60}" for n in range(90)]
    stream = stream_of(users, list(range(80)) + list(range(10)), kind="str", item_kind="int")
    append_examples(project, stream)
    seen: list[str] = []
    activate = ModelStore.activate

    def recording(self: ModelStore, name: str, **named: Any) -> Any:
        seen.extend(str(path.name) for path in list_deltas(project.data_path, name))
        return activate(self, name, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelStore, "activate", recording)
        run_night(project, "2024-03-02")
    assert seen == ["d-000001"]
    assert ModelStore(project.data_path).open().name == "g-000003"


def test_the_day_of_the_old_base_is_dropped(tmp_path: Path) -> None:
    """On the new base nothing of the old increments is left: it is the new base's own replay."""
    project = increment_project(tmp_path)
    run_increment(project)
    publish_tiny(project, seed=1)
    run_increment(project)
    fresh = increment_project(tmp_path / "fresh")
    publish_tiny(fresh, seed=1)
    run_increment(fresh)
    assert_equal(learned_arrays(project), learned_arrays(fresh))


def test_a_roll_back_leads_to_a_replay_from_that_generations_cut(tmp_path: Path) -> None:
    project = increment_project(tmp_path, examples=120)
    run_increment(project)
    publish_tiny(project, seed=1)
    append_examples(project, some_examples(80, first_offset=120))
    run_increment(project)
    ModelStore(project.data_path).roll_back()
    run_increment(project)
    never_left = increment_project(tmp_path / "never", examples=120)
    append_examples(never_left, some_examples(80, first_offset=120))
    run_increment(never_left)
    assert_equal(learned_arrays(project), learned_arrays(never_left))
    for found, expected in zip(published_rows(project), published_rows(never_left), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(list_deltas(project.data_path, "g-000001")) == 2


def test_after_a_refused_night_the_old_increments_go_on(tmp_path: Path) -> None:
    project = increment_project(tmp_path, examples=120)
    run_increment(project)
    store = ModelStore(project.data_path)
    refused = publish(tiny_checkpoint(seed=1), store, index=IndexSettings())
    if refused.manifest.refused:
        with pytest.raises(GateRefused):
            store.activate(refused.name)
    append_examples(project, some_examples(80, first_offset=120))
    (delta,) = run_increment(project)
    assert (delta.manifest.base, delta.sequence) == ("g-000001", 2)


def test_a_delta_of_one_base_is_refused_on_another(tmp_path: Path) -> None:
    project = increment_project(tmp_path)
    (delta,) = run_increment(project)
    publish_tiny(project, seed=1)
    retriever = Retriever.open(project.data_path)
    with pytest.raises(LineageError, match="publish a delta against 'g-000002'"):
        retriever.with_deltas([delta])


def test_dropped_generations_take_their_increments_along(tmp_path: Path) -> None:
    project = increment_project(tmp_path)
    for seed in (1, 2, 3):
        run_increment(project)
        publish_tiny(project, seed=seed)
    run_increment(project)
    prune_project(project, keep=0, dry_run=True)
    assert delta_folder(project.data_path, "g-000001").is_dir()
    prune_project(project, keep=0)
    for name in ("g-000001", "g-000002"):
        assert not delta_folder(project.data_path, name).exists()
        assert not increments_folder(project.data_path, name).exists()
    for name in ("g-000003", "g-000004"):
        assert delta_folder(project.data_path, name).is_dir()
        assert increments_folder(project.data_path, name).is_dir()


@pytest.mark.parametrize("rows", ["user", "user_and_item"])
def test_what_is_served_after_a_delta_is_what_was_trained(tmp_path: Path, rows: str) -> None:
    """The trainer's and the server's vectors, of users and items old and new, to 1e-5."""
    project = increment_project(tmp_path, examples=600, more=f'rows = "{rows}"')
    (delta,) = run_increment(project)
    generation = ModelStore(project.data_path).open()
    update = begin_update(project, generation)
    log = ExampleLog.open(project.data_path)
    for start in range(0, 600, 40):
        update.learn(log.read(start, 40))
    retriever = Retriever.open(project.data_path).with_deltas([delta])
    encoder, state = retriever.encoder, update.state
    items = external_ids("int", "item", 63)
    recent = np.array([items[3], items[62], items[9]])
    for user in [*external_ids("int", "user", 15), 999_999]:
        position = int(encoder.users.positions([user])[0])
        served = encoder.user_vector(
            position,
            encoder.profile(position, {})[0],
            encoder.items.positions(recent.tolist()),
            retriever.overlay.user_embedding(np.array([user])),
        )
        known = state.users.positions([user])
        profile = state.user_features.missing(1)
        if known[0] >= 0:
            for values, stored in zip(profile, state.user_profiles, strict=True):
                values[:] = stored[known]
        row = torch.from_numpy(state.users.rows[known] if known[0] >= 0 else np.zeros(1, np.int64))
        features = Features(
            torch.from_numpy(profile.categorical).long(),
            torch.from_numpy(profile.numeric),
            torch.from_numpy(profile.multi).long(),
        )
        past = History(
            torch.from_numpy(state.items.rows[state.items.positions(recent)]),
            torch.zeros(1, dtype=torch.int64),
        )
        with torch.no_grad():
            trained, _ = state.model.encode_users(row, features, past)
        np.testing.assert_allclose(served, trained.numpy(), atol=1e-5)
    if rows == "user_and_item":
        assert len(delta.rows.item_ids) > 50
        assert len(retriever.overlay.added) == 3
