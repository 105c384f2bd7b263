"""The incremental update moves ID rows of the stream, in order, once, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from stream import stream_of
from tiny_checkpoint import CUT_MS, external_ids, tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.data.example_log import JoinedExamples
from twotower.data.ids import IdKind
from twotower.errors import ConfigError, GateRefused, LineageError
from twotower.publishing.trainer_vectors import trainer_item_vectors, trainer_user_vectors
from twotower.training.batches import Batch
from twotower.training.increment.frozen_inputs import FrozenInputs
from twotower.training.increment.settings import IncrementSettings
from twotower.training.increment.user_rows import UserRowsPass
from twotower.training.incremental_update import IncrementalUpdate
from twotower.training.settings import AdmissionSettings, NegativeSettings, TrainingSettings
from twotower.training.step import Stepper

TRAINING = TrainingSettings(threads=1)
NUM_USERS, NUM_ITEMS = 12, 60


def settings(**changes: Any) -> IncrementSettings:
    return IncrementSettings(**{"batch_size": 16, "uniform": 8, "learning_rate": 0.2, **changes})


def update_of(base: Checkpoint, **changes: Any) -> IncrementalUpdate:
    return IncrementalUpdate(base, settings(**changes), TRAINING)


def random_stream(
    size: int, *, seed: int = 0, kind: IdKind = "int", first_offset: int = 0, new: int = 3
) -> JoinedExamples:
    """Known users and items, `new` of each that the base has never seen, and negatives between."""
    rng = np.random.default_rng(seed)
    users = external_ids(kind, "user", NUM_USERS + new)
    items = external_ids(kind, "item", NUM_ITEMS + new)
    return stream_of(
        [users[n] for n in rng.integers(0, len(users), size)],
        [items[n] for n in rng.integers(0, len(items), size)],
        kind=kind,
        first_offset=first_offset,
        is_positive=list(rng.random(size) < 0.7),
    )


def base_arrays(base: Checkpoint) -> dict[str, npt.NDArray[Any]]:
    return {name: np.array(value) for name, value in base.arrays().items()}


@pytest.mark.parametrize("rows", ["user", "user_and_item"])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_nothing_moves_but_the_own_rows_of_the_stream(rows: str, kind: IdKind) -> None:
    base = tiny_checkpoint(kind=kind)
    before = base_arrays(base)
    rarely = AdmissionSettings(user_min_occurrences=20, item_min_occurrences=20)
    training = msgspec.structs.replace(TRAINING, admission=rarely)  # so many share the unknown row
    update = IncrementalUpdate(base, settings(rows=rows), training)
    for number in range(4):
        update.learn(random_stream(90, seed=number, kind=kind, first_offset=90 * number))
    after = base_arrays(update.state)
    touched = {"user_id": base.users.rows, "item_id": base.items.rows}
    for name, old in before.items():
        if name.startswith(("dense.", "table.user_feature", "table.item_feature")):
            assert np.array_equal(old, after[name]), name
        if name.startswith("table.history"):
            assert np.array_equal(old, after[name][: len(old)]), name
    for table, known in touched.items():
        for part in ("weight", "accumulator"):
            old, new = before[f"table.{table}.{part}"], after[f"table.{table}.{part}"]
            assert np.array_equal(old[0], new[0]), "the unknown-ID row"
            moved = np.flatnonzero((old != new[: len(old)]).reshape(len(old), -1).any(1))
            if table == "item_id" and rows == "user":
                assert len(moved) == 0
            else:
                assert len(moved) > 5
                assert np.isin(moved, known).all()
    for name, value in base.arrays().items():
        assert np.array_equal(before[name], value), f"the base's {name} changed"


@pytest.mark.parametrize("rows", ["user", "user_and_item"])
def test_rows_of_others_keep_their_bits(rows: str) -> None:
    base = tiny_checkpoint()
    users, items = external_ids("int", "user", 12), external_ids("int", "item", 60)
    update = update_of(base, rows=rows, uniform=64)
    update.learn(stream_of([users[0], users[3]] * 20, [items[5], items[7]] * 20))
    tables, old = update.state.model.tables, base.model.tables
    for name, ids, named in (
        ("user_id", base.users, [users[0], users[3]]),
        ("item_id", base.items, [items[5], items[7]] if rows == "user_and_item" else []),
    ):
        moved = ids.rows[ids.positions(named)]
        others = np.setdiff1d(np.arange(len(old[name])), moved)
        assert np.array_equal(tables[name].weight[others], old[name].weight[others])
        assert np.array_equal(tables[name].accumulator[others], old[name].accumulator[others])
        assert (tables[name].weight[moved] != old[name].weight[moved]).any(1).all()
    delta = update.take_delta_rows()
    assert delta.user_ids.tolist() == sorted([users[0], users[3]])
    assert delta.item_ids.tolist() == (
        sorted([items[5], items[7]]) if rows == "user_and_item" else []
    )


def test_an_admitted_row_starts_as_the_unknown_one_with_an_accumulator_of_zero() -> None:
    base = tiny_checkpoint()
    update = update_of(base, learning_rate=1e-30, rows="user_and_item")
    update.learn(stream_of([9001, 9002, 9001], [7, 8, 9003]))
    delta = update.take_delta_rows()
    unknown = base.model.tables["user_id"].weight[0].numpy()
    assert delta.user_ids.tolist() == [9001, 9002]
    np.testing.assert_array_equal(delta.user_embeddings, [unknown, unknown])
    noted = update_of(base)
    noted.learn(stream_of([9001], [7], is_positive=[False]))
    assert len(noted.state.users) == NUM_USERS, "an impression admits nobody"
    table = update.state.model.tables["user_id"]
    assert table.accumulator[-2:].tolist() != [0.0, 0.0]
    assert len(table) == len(base.model.tables["user_id"]) + 2


def test_a_delta_holds_what_was_touched_since_the_one_before() -> None:
    base = tiny_checkpoint()
    users = external_ids("int", "user", 12)
    update = update_of(base)
    update.learn(stream_of(users[:4], [650, 651, 652, 653]))
    first = update.take_delta_rows()
    assert first.user_ids.tolist() == sorted(users[:4])
    assert not update.take_delta_rows()
    update.learn(stream_of([users[2], 9001], [650, 651], first_offset=4))
    second = update.take_delta_rows()
    assert second.user_ids.tolist() == sorted([users[2], 9001])
    rows = update.state.users.rows[update.state.users.positions(second.user_ids)]
    np.testing.assert_array_equal(
        second.user_embeddings, update.state.model.tables["user_id"].weight.numpy()[rows]
    )
    second.check("the delta")


def test_the_stream_is_trained_in_its_order_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_checkpoint()
    seen: list[int] = []
    step = Stepper.step

    def recording(self: Stepper, batch: Batch, generator: torch.Generator) -> float:
        seen.extend(batch.columns.items[: len(batch.weight)].tolist())
        return step(self, batch, generator)

    monkeypatch.setattr(Stepper, "step", recording)
    monkeypatch.setattr(UserRowsPass, "serves", lambda training: False)
    update = update_of(base)
    stream = random_stream(100, new=0)
    update.learn(stream.take(slice(0, 41)))
    update.learn(stream.take(slice(41, 100)))
    positions = base.items.positions(stream.item_id)[stream.is_positive]
    assert seen == positions.tolist()
    assert update.offset == 100
    assert update.newest_event_time_ms == stream.event_time_ms[-1]
    with pytest.raises(LineageError, match="each is trained once"):
        update.learn(stream.take(slice(60, 100)))
    with pytest.raises(LineageError, match="each is trained once"):
        update.learn(random_stream(4)._replace(offset=np.array([100, 102, 101, 103])))


def test_a_user_moves_towards_what_he_clicks() -> None:
    base = tiny_checkpoint(history_length=0)
    users = external_ids("int", "user", 12)
    items = [700 - n for n in range(60)]
    positions = base.items.positions(items)
    vectors = trainer_item_vectors(base, positions)
    nearest = np.argsort(-vectors @ vectors[0])[:6]
    update = update_of(base)
    clicked = [items[n] for n in nearest] * 10
    update.learn(stream_of([users[0]] * len(clicked), clicked, every_ms=3_600_000))
    place = base.users.positions([users[0]])
    before = trainer_user_vectors(base, place) @ vectors[nearest].T
    after = trainer_user_vectors(update.state, place) @ vectors[nearest].T
    assert after.mean() > before.mean() + 0.1


def test_item_vectors_of_mode_user_are_those_that_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_checkpoint(popularity_weight=1.0)
    served = np.random.default_rng(0).normal(size=(len(base.corpus), 9)).astype(np.float32)
    found: list[Batch] = []
    step = Stepper.step

    def recording(self: Stepper, batch: Batch, generator: torch.Generator) -> float:
        found.append(batch)
        return step(self, batch, generator)

    monkeypatch.setattr(Stepper, "step", recording)
    monkeypatch.setattr(UserRowsPass, "serves", lambda training: False)
    update = IncrementalUpdate(base, settings(), TRAINING, item_vectors=served)
    update.learn(stream_of([700, 9001], base.items.decode([int(base.corpus[0]), 0])))
    (batch,) = found
    assert batch.item_vectors is not None
    place = {int(item): n for n, item in enumerate(base.corpus)}
    vectors = batch.item_vectors[batch.places]
    for item, vector in zip(batch.columns.items.tolist(), vectors, strict=True):
        if item in place:
            np.testing.assert_array_equal(vector.numpy(), served[place[item], :8])
        else:
            encoded = trainer_item_vectors(base, np.array([item]))[0]
            np.testing.assert_allclose(vector.numpy(), encoded, atol=1e-6)


def test_item_rows_move_together_with_their_published_vectors() -> None:
    base = tiny_checkpoint(popularity_weight=0.5)
    update = update_of(base, rows="user_and_item")
    update.learn(random_stream(300))
    delta = update.take_delta_rows()
    positions = update.state.items.positions(delta.item_ids)
    assert (positions >= NUM_ITEMS).sum() == 3, "new items travel too"
    expected = trainer_item_vectors(update.state, positions)
    np.testing.assert_allclose(delta.item_vectors[:, :-1], expected, atol=1e-6)
    smoothed = base.popularity.log_popularity(CUT_MS, 1.0)
    for position, vector in zip(positions, delta.item_vectors, strict=True):
        known = smoothed[position] if position < len(smoothed) else 0.0
        assert vector[-1] == pytest.approx(0.5 * 0.1 * known, abs=1e-6)


@pytest.mark.parametrize("uniform", [0, 24])
@pytest.mark.parametrize("temperature", [0.1, 0.004])
@pytest.mark.parametrize("correction", ["mixture", "per_source", "none"])
def test_user_rows_learn_alone_what_they_learn_with_everything_around(
    monkeypatch: pytest.MonkeyPatch, uniform: int, temperature: float, correction: str
) -> None:
    base = tiny_checkpoint()
    negatives = NegativeSettings(correction=correction)  # type: ignore[arg-type]
    training = msgspec.structs.replace(TRAINING, temperature=temperature, negatives=negatives)
    made = [IncrementalUpdate(base, settings(uniform=uniform), training) for _ in range(2)]
    losses = []
    for number, update in enumerate(made):
        if number:
            monkeypatch.setattr(UserRowsPass, "serves", lambda training: False)
        parts = [random_stream(90, seed=n, first_offset=90 * n) for n in range(2)]
        losses.append([update.learn(part).loss for part in parts])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    alone, around = (update.state.model.tables["user_id"] for update in made)
    assert not torch.equal(alone.weight[:12], base.model.tables["user_id"].weight[:12])
    np.testing.assert_allclose(alone.weight.numpy(), around.weight.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        alone.accumulator.numpy(), around.accumulator.numpy(), rtol=1e-3, atol=1e-6
    )


def test_lanes_change_the_rows_of_a_step_by_rounding_alone() -> None:
    base, threads = tiny_checkpoint(), torch.get_num_threads()
    found = []
    for lanes in (1, 3):
        training = msgspec.structs.replace(TRAINING, threads=lanes)
        update = IncrementalUpdate(base, settings(), training)
        loss = update.learn(random_stream(90)).loss
        found.append((loss, update.state.model.tables["user_id"].weight.numpy()))
        assert torch.get_num_threads() == lanes, "the setting outlives the pass"
    torch.set_num_threads(threads)
    (loss, weight), (loss_in_lanes, weight_in_lanes) = found
    assert loss_in_lanes == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(weight_in_lanes, weight, rtol=1e-4, atol=1e-5)


def test_a_user_teaches_so_much_an_hour_and_no_more() -> None:
    base = tiny_checkpoint()
    users = external_ids("int", "user", 12)
    update = update_of(base, user_limit=5, user_window_s=3600)
    stream = stream_of(
        [users[0]] * 30 + [users[1]] * 3, [690 - n % 20 for n in range(33)], every_ms=60_000
    )
    start = stream.event_time_ms[0] // 3_600_000 * 3_600_000
    stream = stream._replace(event_time_ms=start + 60_000 * np.arange(33))
    learned = update.learn(stream)
    assert (learned.positives, learned.trained, learned.over_limit) == (33, 8, 25)
    late = stream_of([users[0]] * 4, [690] * 4, first_offset=33, start_ms=start - 7_200_000)
    assert update.learn(late).over_limit == 4, "a late click is no way around the bound"
    later = stream_of([users[0]] * 9, [690] * 9, first_offset=37, start_ms=start + 3_600_000)
    assert update.learn(later).trained == 5


def test_fresh_accumulators_make_longer_first_steps() -> None:
    base = tiny_checkpoint()
    base.model.tables["user_id"].accumulator += 1.0
    stream = random_stream(16, new=0)

    def moved(accumulators: str) -> float:
        update = update_of(base, accumulators=accumulators)
        update.learn(stream)
        before = base.model.tables["user_id"].weight
        return float((update.state.model.tables["user_id"].weight[: len(before)] - before).norm())

    assert moved("fresh") > 3 * moved("copy")


@pytest.mark.parametrize("rows", ["user", "user_and_item"])
@pytest.mark.parametrize("history_length", [0, 4])
@pytest.mark.parametrize("with_features", [False, True])
def test_what_is_frozen_is_multiplied_once_and_learns_the_same(
    rows: str, history_length: int, with_features: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the plain path, which looks every feature up and goes through the whole tower."""
    base = tiny_checkpoint(history_length=history_length, with_features=with_features)
    stream = random_stream(240)

    def learned(update: IncrementalUpdate) -> IncrementalUpdate:
        update.learn(stream.take(slice(0, 110)))
        update.learn(stream.take(slice(110, 240)))
        return update

    folded = learned(update_of(base, rows=rows, learning_rate=0.05))
    monkeypatch.setattr(FrozenInputs, "of", lambda *_: None)
    plain = learned(update_of(base, rows=rows, learning_rate=0.05))
    for name in ("user_id", "item_id"):
        found, expected = folded.state.model.tables[name], plain.state.model.tables[name]
        torch.testing.assert_close(found.weight, expected.weight, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.accumulator, expected.accumulator, atol=0, rtol=1e-5)


def test_the_same_portions_give_the_same_bits() -> None:
    base = tiny_checkpoint()
    stream = random_stream(120)
    updates = [update_of(base, rows="user_and_item") for _ in range(2)]
    for update in updates:
        update.learn(stream.take(slice(0, 50)))
        update.learn(stream.take(slice(50, 120)))
    first, second = (base_arrays(update.state) for update in updates)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_not_finite_stops_the_update() -> None:
    base = tiny_checkpoint()
    base.model.tables["user_id"].weight[3] = float("nan")
    update = update_of(base)
    with pytest.raises(GateRefused, match="the last delta stays live") as raised:
        update.learn(random_stream(100, new=0))
    assert raised.value.exit_code == 3


def test_a_loss_that_explodes_stops_the_update() -> None:
    update = update_of(tiny_checkpoint(), loss_limit=1.5)
    for number in range(32):
        update.watch.check(4.0, number)
    for number in range(31):
        update.watch.check(6.1, number)
    with pytest.raises(GateRefused, match=r"at most 6\.0000, 1\.5 times"):
        update.watch.check(6.1, 99)


def test_without_negatives_nothing_is_learned() -> None:
    training = TrainingSettings(negatives=NegativeSettings(in_batch=False))
    with pytest.raises(ConfigError, match=r"increment\.uniform = 0"):
        IncrementalUpdate(tiny_checkpoint(), settings(uniform=0), training)


def test_the_estimate_of_frequencies_goes_on_from_a_copy() -> None:
    base = tiny_checkpoint()
    before = copy.deepcopy(base.frequency)
    update = update_of(base)
    stream = random_stream(60, new=0)
    update.learn(stream)
    items = base.items.positions(stream.item_id)[stream.is_positive]
    before.observe(items)
    np.testing.assert_array_equal(
        update.state.frequency.log_probability(), before.log_probability()
    )
    assert base.frequency.num_examples == 200
