"""Held-out positives: chosen by a hash, trained one night later, and each trained once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from toy import write_project
from toy_lineage import ToyLineage
from twotower.checkpoint import Checkpoint
from twotower.data.days import DayEvents, event_digest
from twotower.data.examples import Examples
from twotower.data.held_out import HeldOut, HoldOutRule, choose_held_out
from twotower.errors import LineageError
from twotower.training import full_update, held_out, training_pass
from twotower.training.resume import PassKeeper, pass_key
from twotower.training.settings import ShownNegativeSettings, TrainingSettings

DAYS = ("2024-03-01", "2024-03-02", "2024-03-03", "2024-03-04")
RULE = HoldOutRule(positives=40, max_share=0.5, min_positives=10)


class Lineage(ToyLineage):
    """The toy log, its base model, and nights that hold out positives."""

    def full(
        self, parent: Checkpoint, day: str, training: TrainingSettings | None = None, **named: Any
    ) -> Checkpoint:
        return super().full(parent, day, training, **{"hold_out": RULE, **named})

    def positives(self, day: str) -> npt.NDArray[np.uint64]:
        events = self.data.day(day)
        return events.event_id[events.outcome]


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(write_project(tmp_path_factory.mktemp("held-out"), num_days=len(DAYS)))


@pytest.fixture(scope="module")
def first(lineage: Lineage) -> Checkpoint:
    return lineage.full(lineage.base, DAYS[0])


@pytest.fixture
def trained_ids(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The event IDs of every pass, as they went in."""
    passes: list[set[int]] = []
    original = training_pass.run_pass

    def recording(state: Checkpoint, examples, *rest, **named):  # type: ignore[no-untyped-def]
        passes.append(set(examples.event_id.tolist()))
        return original(state, examples, *rest, **named)

    monkeypatch.setattr(full_update, "run_pass", recording)
    return passes


def chosen_users(users: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> set[int]:
    return set(users[chosen].tolist())


def test_whole_users_are_chosen_until_there_are_enough() -> None:
    users = np.random.default_rng(0).integers(0, 300, 3000)
    chosen = choose_held_out(users, 1_000, HoldOutRule(500, 0.5, 100))
    assert 500 <= chosen.sum() < 500 + np.bincount(users).max()
    assert chosen_users(users, chosen) & chosen_users(users, ~chosen) == set()
    shuffled = np.random.default_rng(1).permutation(len(users))
    again = choose_held_out(users[shuffled], 1_000, HoldOutRule(500, 0.5, 100))
    np.testing.assert_array_equal(again, chosen[shuffled])


def test_another_cut_chooses_other_users() -> None:
    users = np.arange(3000) % 1000
    rule = HoldOutRule(600, 0.5, 100)
    first, second = (chosen_users(users, choose_held_out(users, cut, rule)) for cut in (1, 2))
    assert len(first) == len(second) == 200
    assert 15 < len(first & second) < 75  # 40 by chance


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (HoldOutRule(500, 0.1, 100), 300),  # no more than the share
        (HoldOutRule(500, 0.1, 301), 0),  # too few to tell anything
        (HoldOutRule(0, 0.9, 0), 0),  # switched off
        (HoldOutRule(50, 0.9, 100), 51),  # fewer wanted than would be needed
    ],
)
def test_the_share_bounds_what_is_held_out(rule: HoldOutRule, expected: int) -> None:
    users = np.arange(3000) % 1000
    assert choose_held_out(users, 7, rule).sum() == expected
    assert choose_held_out(users[:0], 7, rule).sum() == 0


def test_one_user_with_half_of_a_day_is_not_the_sample() -> None:
    users = np.concatenate([np.zeros(500, np.int64), 1 + np.arange(500) % 100])
    for cut in range(20):
        chosen = choose_held_out(users, cut, HoldOutRule(50, 0.1, 20))
        assert chosen.sum() == 50
        assert not chosen[0]


def test_they_are_left_out_one_night_and_trained_the_next(
    lineage: Lineage, trained_ids: list[set[int]]
) -> None:
    first = lineage.full(lineage.base, DAYS[0])
    second = lineage.full(first, DAYS[1])
    withheld = set(first.held_out.event_id.tolist())
    assert len(withheld) >= 40
    assert trained_ids[0] == set(lineage.positives(DAYS[0]).tolist()) - withheld
    left = set(lineage.positives(DAYS[1]).tolist()) - set(second.held_out.event_id.tolist())
    assert trained_ids[1] == left | withheld
    counts = second.meta.trained
    assert counts.carried_rows == first.meta.trained.withheld_rows == len(withheld)
    assert counts.rows == counts.window_rows - counts.withheld_rows + counts.carried_rows


def test_over_a_lineage_every_positive_is_trained_once(lineage: Lineage) -> None:
    state, digests = lineage.base, []
    for day, rule in zip(DAYS, (RULE, RULE, None, RULE), strict=True):
        state = lineage.full(state, day, hold_out=rule)
        digests.append(int(state.meta.trained.digest, 16))
    everything = np.concatenate([lineage.positives(day) for day in DAYS])
    left = sum(digests) + int(state.held_out.digest, 16)
    assert f"{left % 2**64:016x}" == event_digest(everything)


def test_a_refused_night_leaves_the_carried_ones_to_the_next_one(
    lineage: Lineage, first: Checkpoint, trained_ids: list[set[int]]
) -> None:
    lineage.full(first, DAYS[1])  # refused: what follows starts from the same parent
    both = lineage.full(first, DAYS[2])
    expected = {
        *first.held_out.event_id.tolist(),
        *lineage.positives(DAYS[1]).tolist(),
        *lineage.positives(DAYS[2]).tolist(),
    }
    assert trained_ids[1] == expected - set(both.held_out.event_id.tolist())


@pytest.mark.parametrize("forgotten", ["carried", "withheld"])
def test_a_night_that_forgets_one_is_refused(
    lineage: Lineage, first: Checkpoint, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    original: Any = held_out.divide

    def forgetful(*arguments):  # type: ignore[no-untyped-def]
        return original(*arguments)._replace(**{forgotten: HeldOut.none()})

    monkeypatch.setattr(full_update, "divide", forgetful)
    with pytest.raises(LineageError, match="each once"):
        lineage.full(first, DAYS[1])


def test_carried_histories_hold_only_what_came_before(lineage: Lineage, first: Checkpoint) -> None:
    held = first.held_out
    users = first.users.positions(held.user_id)
    before = lineage.base.user_state.recent
    length = first.meta.model.history_length
    clicks: dict[int, list[tuple[int, int]]] = {}
    for index, user in enumerate(users.tolist()):
        known = before.list_at(user).tolist()
        same_day = clicks.setdefault(user, [])
        now = int(held.event_time_ms[index])
        expected = known + [item for time, item in same_day if time < now]
        assert held.history.list_at(index).tolist() == expected[-length:]
        same_day.append((now, int(first.items.positions(held.item_id[index : index + 1])[0])))


def test_carried_examples_are_trained_with_the_histories_they_had(
    lineage: Lineage, first: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Examples] = []
    original = training_pass.run_pass

    def recording(state: Checkpoint, examples, *rest, **named):  # type: ignore[no-untyped-def]
        seen.append(examples)
        return original(state, examples, *rest, **named)

    monkeypatch.setattr(full_update, "run_pass", recording)
    lineage.full(first, DAYS[1])
    num_carried = len(first.held_out)
    histories = seen[0].histories(np.arange(num_carried))
    np.testing.assert_array_equal(histories.values, first.held_out.history.values)
    np.testing.assert_array_equal(seen[0].event_id[:num_carried], first.held_out.event_id)
    assert (np.diff(seen[0].event_time_ms) >= 0).all()


def test_a_saved_checkpoint_carries_them(
    lineage: Lineage, first: Checkpoint, tmp_path: Path
) -> None:
    first.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert loaded.held_out.arrays().keys() == first.held_out.arrays().keys()
    expected = lineage.full(first, DAYS[1]).arrays()
    for name, values in lineage.full(loaded, DAYS[1]).arrays().items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_text_ids_come_back() -> None:
    held = dataclasses.replace(HeldOut.none(), user_id=np.array([b"u1", b"user-2"]))
    assert HeldOut.from_arrays(held.arrays()).user_id.tolist() == [b"u1", b"user-2"]
    assert len(HeldOut.from_arrays({})) == 0


def test_what_is_trained_does_not_depend_on_what_is_held_out(
    lineage: Lineage, first: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other items are planted in the withheld clicks: only the user state may change."""
    original = lineage.data.day
    withheld = first.held_out.event_id

    def planted(day: str) -> DayEvents:
        events = original(day)
        is_withheld = np.isin(events.event_id, withheld)
        items = np.where(is_withheld, np.roll(events.item_id, 7), events.item_id)
        return dataclasses.replace(events, item_id=items)

    monkeypatch.setattr(lineage.data, "day", planted)
    other = lineage.full(lineage.base, DAYS[0])
    expected, changed = first.arrays(), []
    for name, values in other.arrays().items():
        if not np.array_equal(values, expected[name]):
            changed.append(name.partition(".")[0])
    assert set(changed) == {"user_state", "held_out"}


class _Stopping:
    """Progress of a run that is killed after some steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
        pass

    def advance(self, count: int = 1, **figures: float) -> None:
        self._left -= 1
        if self._left < 0:
            raise InterruptedError

    def end(self) -> None:
        pass


def test_a_killed_night_goes_on_with_what_it_carried_and_withheld(
    lineage: Lineage, first: Checkpoint, tmp_path: Path
) -> None:
    shown = msgspec.structs.replace(
        lineage.project.training.negatives, shown=ShownNegativeSettings(weight=0.1, share=0.1)
    )
    training = msgspec.structs.replace(lineage.project.training, negatives=shown)
    keeper = PassKeeper(tmp_path / "pass", pass_key(first, DAYS[1], RULE), every_steps=1)
    with pytest.raises(InterruptedError):
        lineage.full(first, DAYS[1], training, keeper=keeper, progress=_Stopping(4))
    found = lineage.full(first, DAYS[1], training, keeper=keeper)
    expected = lineage.full(first, DAYS[1], training)
    for name, values in found.arrays().items():
        np.testing.assert_array_equal(values, expected.arrays()[name], err_msg=name)
    assert found.meta.trained.digest == expected.meta.trained.digest
    assert found.meta.negatives == expected.meta.negatives
    assert found.meta.negatives["shown_drawn"] > 0
