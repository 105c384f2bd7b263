"""Hard negatives in a full update: what is on the lists, and what it does to the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from staged_log import DAYS, write_staged_project
from toy import NUM_ITEMS
from toy_lineage import ToyLineage
from twotower.checkpoint import Checkpoint
from twotower.data.examples import Examples
from twotower.data.held_out import HoldOutRule
from twotower.data.schema import IntArray
from twotower.data.user_state import Ragged
from twotower.errors import ConfigError, DataError
from twotower.model.losses import select_loss
from twotower.model.row_negatives import NO_ITEM
from twotower.publishing.trainer_vectors import trainer_item_vectors, trainer_user_vectors
from twotower.training import full_update, training_pass
from twotower.training.batches import Batch, BatchMaker, NegativeLists
from twotower.training.settings import HardNegativeSettings, ShownNegativeSettings, TrainingSettings
from twotower.training.step import Stepper, load_adam

Pair = tuple[int, int]
LOGGED = HardNegativeSettings(source="logged", share=0.1, weight=1.0, stages=("rank",))
STRONG = msgspec.structs.replace(LOGGED, weight=3.0)
MINED = HardNegativeSettings(source="mined", share=0.1, weight=1.0)


class Lineage(ToyLineage):
    """The staged log and its base model."""

    def __init__(self, folder: Path, **named: Any) -> None:
        super().__init__(write_staged_project(folder, **named))

    def training(
        self, hard: HardNegativeSettings, shown: ShownNegativeSettings | None = None, **named: Any
    ) -> TrainingSettings:
        negatives = msgspec.structs.replace(
            self.project.training.negatives, hard=hard, shown=shown or ShownNegativeSettings()
        )
        return msgspec.structs.replace(self.project.training, negatives=negatives, **named)

    def all_days(self, training: TrainingSettings) -> Checkpoint:
        full = msgspec.structs.replace(training.full, batch_size=16, epochs=3)
        training, state = msgspec.structs.replace(training, full=full), self.base
        for day in DAYS:
            state = self.full(state, day, training)
        return state


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(tmp_path_factory.mktemp("staged"))


@pytest.fixture(scope="module")
def with_history(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(tmp_path_factory.mktemp("history"), history=True)


class Passes:
    """What went into every pass."""

    def __init__(self) -> None:
        self.examples: list[Examples] = []
        self.listed: list[Sequence[NegativeLists]] = []

    def pairs(self, source: int = 0) -> set[tuple[int, int]]:
        """User and item positions on the lists of the last pass."""
        by_user = self.listed[-1][source].by_user
        return set(zip(by_user.owners().tolist(), by_user.values.tolist(), strict=True))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    recorded, original = Passes(), training_pass.run_pass

    def recording(state: Checkpoint, examples: Examples, *rest: Any, **named: Any) -> Any:
        recorded.examples.append(examples)
        recorded.listed.append(named["listed"])
        return original(state, examples, *rest, **named)

    monkeypatch.setattr(full_update, "run_pass", recording)
    return recorded


def share_not_eliminated(state: Checkpoint) -> float:
    """Share of pairs whose better half for a user is the one ranking kept; half by chance."""
    users, items = np.arange(len(state.users)), state.items.positions(range(NUM_ITEMS))
    scores = trainer_user_vectors(state, users) @ trainer_item_vectors(state, items).T
    odd_is_better = scores[:, 1::2] > scores[:, ::2]
    is_even_user = np.array([int(str(user)[1:]) % 2 == 0 for user in state.users.decode(users)])
    return float((odd_is_better == is_even_user[:, None]).mean())


# ---- the stage column is the only signal


@pytest.mark.parametrize("loss", ["listwise", "pointwise", "pairwise_hinge", "pairwise_logistic"])
def test_a_model_that_uses_the_stage_learns_what_clicks_do_not_tell(
    lineage: Lineage, loss: str
) -> None:
    share = 0.1 if loss == "listwise" else 1.0
    hard = msgspec.structs.replace(STRONG, share=share)
    assert share_not_eliminated(lineage.all_days(lineage.training(hard, loss=loss))) > 0.85


def test_a_model_that_ignores_the_stage_does_not(lineage: Lineage) -> None:
    ignoring = lineage.all_days(lineage.training(HardNegativeSettings()))
    assert 0.4 < share_not_eliminated(ignoring) < 0.6


def test_only_the_stages_that_count_are_used(lineage: Lineage) -> None:
    reverse = msgspec.structs.replace(STRONG, stages=("filter",))
    assert share_not_eliminated(lineage.all_days(lineage.training(reverse))) < 0.15


def test_stages_that_eliminated_nobody_are_refused_with_those_there_are(lineage: Lineage) -> None:
    wrong = lineage.training(msgspec.structs.replace(LOGGED, stages=("ranking",)))
    with pytest.raises(DataError, match=r"eliminated at ranking in .* found filter, rank; nothing"):
        lineage.full(lineage.base, DAYS[0], wrong)


def test_eliminated_candidates_change_nothing_while_they_are_not_used(tmp_path: Path) -> None:
    """No positive, not seen, no popularity, no frequency, no item of the corpus: the same bits."""
    states = []
    for eliminated in (True, False):
        lineage = Lineage(tmp_path / str(eliminated), eliminated=eliminated)
        states.append(lineage.full(lineage.base, DAYS[0], lineage.project.training).arrays())
    for name, values in states[0].items():
        np.testing.assert_array_equal(values, states[1][name], err_msg=name)


# ---- what is on the lists


def pairs_of(users: IntArray, items: IntArray) -> set[Pair]:
    return set(zip(users.tolist(), items.tolist(), strict=True))


def clicked_and_seen(
    lineage: Lineage, state: Checkpoint, through: str
) -> tuple[set[Pair], set[Pair]]:
    """Pairs of positions, from the log itself: clicked up to a day and with it, and shown."""
    clicked, seen = set[Pair](), set[Pair]()
    history = lineage.data.history()
    if history is not None:
        owners = np.repeat(history.user_id, np.diff(history.positive_offsets))
        clicked |= pairs_of(state.users.positions(owners), state.items.positions(history.positives))
    for day in lineage.data.days:
        if day <= through:
            events = lineage.data.day(day)
            users = state.users.positions(events.user_id)
            items = state.items.positions(events.item_id)
            clicked |= pairs_of(users[events.outcome], items[events.outcome])
            seen |= pairs_of(users, items)
    return clicked, seen


def logged_pairs(lineage: Lineage, state: Checkpoint, day: str, stage: str) -> set[Pair]:
    events = lineage.data.eliminated(day)
    assert events is not None
    assert events.stage is not None
    kept = events.stage == stage
    users = state.users.positions(events.user_id[kept])
    items = state.items.positions(events.item_id[kept])
    return pairs_of(users, items)


def test_no_positive_known_up_to_the_cut_is_on_a_list(
    with_history: Lineage, passes: Passes
) -> None:
    first = with_history.full(
        with_history.base, DAYS[0], with_history.training(HardNegativeSettings())
    )
    state = with_history.full(first, DAYS[1], with_history.training(LOGGED))
    clicked, _ = clicked_and_seen(with_history, state, DAYS[1])
    of_history = clicked_and_seen(with_history, state, "2024-02-01")[0]
    logged = logged_pairs(with_history, state, DAYS[1], "rank")
    before = clicked_and_seen(with_history, state, DAYS[0])[0]
    assert logged & of_history  # of the history, of an earlier day, and of the day itself
    assert logged & (before - of_history)
    assert logged & (clicked - before)
    found = passes.pairs()
    assert found
    assert found <= logged
    assert not found & clicked
    unseen = logged - clicked - clicked_and_seen(with_history, state, DAYS[0])[1]
    trained = set(passes.examples[-1].user.tolist())
    assert {pair for pair in unseen if pair[0] in trained} == found
    of_trained = {pair for pair in logged if pair[0] in trained}
    assert state.meta.negatives["hard_candidates"] == len(found)
    assert state.meta.negatives["hard_known"] == len(of_trained - found) > 0


def test_who_is_held_out_tonight_has_no_list(lineage: Lineage, passes: Passes) -> None:
    rule = HoldOutRule(positives=100, max_share=0.5, min_positives=10)
    first = lineage.full(lineage.base, DAYS[0], lineage.training(LOGGED), hold_out=rule)
    lineage.full(first, DAYS[1], lineage.training(LOGGED), hold_out=rule)
    users = {user for user, _ in passes.pairs()}
    last = lineage.full(first, DAYS[1], lineage.training(LOGGED), hold_out=rule)
    withheld = set(last.users.positions(last.held_out.user_id).tolist())
    assert withheld
    assert withheld & set(passes.examples[-1].user.tolist())  # carried over and held out again
    assert users
    assert not users & withheld


def test_shown_and_not_clicked_is_a_source_of_its_own(lineage: Lineage, passes: Passes) -> None:
    both = lineage.training(LOGGED, ShownNegativeSettings(weight=0.3, share=0.05))
    state = lineage.full(lineage.base, DAYS[0], both)
    hard, shown = passes.listed[-1]
    assert (hard.weight, hard.share) == (1.0, 0.1)
    assert (shown.weight, shown.share) == (0.3, 0.05)
    clicked, seen = clicked_and_seen(lineage, state, DAYS[0])
    assert passes.pairs(1) == {p for p in seen - clicked if p[0] in {u for u, _ in clicked}}
    counts = state.meta.negatives
    assert counts["shown_candidates"] == len(passes.pairs(1))
    assert counts["shown_known"] == len(clicked)
    assert set(counts) == {
        f"{source}_{count}"
        for source in ("hard", "shown")
        for count in ("candidates", "known", "drawn")
    }


def test_what_was_drawn_is_counted_as_it_went_through_a_step(
    lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, start = [], Stepper.start

    def counting(self: Stepper, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        drawn.append([int((own.places >= 0).sum()) for own in batch.row_negatives])
        return start(self, batch, generator)

    monkeypatch.setattr(Stepper, "start", counting)
    both = lineage.training(LOGGED, ShownNegativeSettings(weight=0.3, share=0.05))
    counts = lineage.full(lineage.base, DAYS[0], both).meta.negatives
    assert [counts["hard_drawn"], counts["shown_drawn"]] == np.sum(drawn, axis=0).tolist()
    assert counts["hard_drawn"] > 100
    off = lineage.full(lineage.base, DAYS[0], lineage.training(HardNegativeSettings()))
    assert off.meta.negatives == {}


def test_it_is_off_by_default_and_by_a_weight_of_zero(lineage: Lineage, passes: Passes) -> None:
    for hard in (HardNegativeSettings(), msgspec.structs.replace(LOGGED, weight=0.0)):
        lineage.full(lineage.base, DAYS[0], lineage.training(hard))
        assert passes.listed[-1] == ()


# ---- mined


def test_an_untrained_parent_is_not_mined_and_a_trained_one_must_be_there(
    lineage: Lineage, passes: Passes
) -> None:
    first = lineage.full(lineage.base, DAYS[0], lineage.training(MINED))
    assert passes.pairs() == set()
    with pytest.raises(ConfigError, match="to mine hard negatives from, found none"):
        lineage.full(first, DAYS[1], lineage.training(MINED))


def test_mined_items_go_through_the_same_exclusion(lineage: Lineage, passes: Passes) -> None:
    first = lineage.full(lineage.base, DAYS[0], lineage.training(HardNegativeSettings()))
    num_items = len(first.items)

    def everything(users: IntArray) -> Ragged:
        assert (users < len(first.users)).all()
        return Ragged(
            np.tile(np.arange(num_items), len(users)), np.arange(len(users) + 1) * num_items
        )

    state = lineage.full(first, DAYS[1], lineage.training(MINED), miner=everything)
    clicked, _ = clicked_and_seen(lineage, state, DAYS[1])
    seen = clicked_and_seen(lineage, state, DAYS[0])[1]
    trained = set(passes.examples[-1].user.tolist())
    expected = {(u, i) for u in trained for i in range(num_items)} - clicked - seen
    assert passes.pairs() == expected


# ---- what becomes of them in a batch and a step


def lists_of(num_users: int, num_items: int, share: float) -> NegativeLists:
    everything = Ragged(
        np.tile(np.arange(num_items), num_users), np.arange(num_users + 1) * num_items
    )
    return NegativeLists(everything, share, 0.7)


def batch_of(
    state: Checkpoint, examples: Examples, training: TrainingSettings, *lists: NegativeLists
) -> Batch:
    frequencies = np.linspace(-9, -1, len(examples)).astype(np.float32)
    maker = BatchMaker(state, examples, frequencies, training, training.full, lists)
    return maker.make(np.arange(40), torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def trained(lineage: Lineage) -> tuple[Checkpoint, Examples]:
    """A state and the examples of a day."""
    recorded, original = Passes(), training_pass.run_pass

    def recording(state: Checkpoint, examples: Examples, *rest: Any, **named: Any) -> Any:
        recorded.examples.append(examples)
        return original(state, examples, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_update, "run_pass", recording)
        state = lineage.full(lineage.base, DAYS[0], lineage.training(HardNegativeSettings()))
    return state, recorded.examples[0]


@pytest.mark.parametrize(
    ("loss", "in_batch", "num_easy"),
    [("listwise", True, 72), ("listwise", False, 32), ("pointwise", True, 3)],
)
@pytest.mark.parametrize("share", [0.01, 0.2])
def test_their_number_is_the_share_of_the_easy_ones(
    lineage: Lineage,
    trained: tuple[Checkpoint, Examples],
    loss: str,
    in_batch: bool,
    num_easy: int,
    share: float,
) -> None:
    state, examples = trained
    training = lineage.training(HardNegativeSettings(), loss=loss)
    negatives = msgspec.structs.replace(training.negatives, in_batch=in_batch)
    training = msgspec.structs.replace(training, negatives=negatives)
    lists = lists_of(len(state.users), 200, share)
    lists = lists._replace(by_user=Ragged(lists.by_user.values % 5 + 60, lists.by_user.offsets))
    (found,) = batch_of(state, examples, training, lists).row_negatives
    own = np.isin(examples.item[:40], np.arange(60, 65)).sum() * found.places.shape[1]
    number = int((found.places != NO_ITEM).sum())
    assert num_easy * share * 40 - 1 - own < number < num_easy * share * 40 + 1


def test_a_rows_own_positive_is_never_its_negative(
    lineage: Lineage, trained: tuple[Checkpoint, Examples]
) -> None:
    state, examples = trained
    training = lineage.training(HardNegativeSettings())
    lists = lists_of(len(state.users), len(state.items), 1.0)
    batch = batch_of(state, examples, training, lists)
    num_columns = len(batch.columns.items)
    places = batch.row_negatives[0].places
    own = torch.arange(len(state.items))  # somebody draws every item
    items = torch.cat([batch.columns.items, own])
    assert len(batch.places) == len(items)
    drawn = torch.where(places == NO_ITEM, NO_ITEM, items[places.clamp_min(0)])
    assert (places[places != NO_ITEM] >= num_columns).all()
    assert not (drawn == batch.columns.items[:40, None]).any()
    assert (drawn != NO_ITEM).sum() > 40 * 60


@pytest.mark.parametrize("correction", ["mixture", "per_source", "none"])
@pytest.mark.parametrize("loss", ["listwise", "pointwise", "pairwise_hinge"])
def test_a_step_adds_the_weighted_term_of_uncorrected_logits(
    lineage: Lineage, trained: tuple[Checkpoint, Examples], loss: str, correction: str
) -> None:
    state, examples = copy.deepcopy(trained[0]), trained[1]
    training = lineage.training(HardNegativeSettings(), loss=loss)
    negatives = msgspec.structs.replace(training.negatives, correction=correction)
    training = msgspec.structs.replace(training, negatives=negatives)
    lists = lists_of(len(state.users), len(state.items), 0.2)
    batch = batch_of(state, examples, training, lists)
    weight = torch.linspace(0.5, 2.0, 40)
    batch = batch._replace(weight=weight)
    with torch.no_grad():
        users, _ = state.model.encode_users(batch.user_rows, batch.user_features, batch.history)
        items, _ = state.model.encode_items(batch.item_rows, batch.item_features)
    logits = users @ items[batch.places].T / training.temperature
    expected = 0.0
    for row, places in enumerate(batch.row_negatives[0].places.tolist()):
        own = logits[row, [place for place in places if place != NO_ITEM]][None]
        compared = "pairwise_logistic" if loss == "pointwise" else loss
        term = select_loss(compared, margin=training.margin / training.temperature)
        expected += float(weight[row]) * term(logits[row, row][None], own).item()
    found = step_loss(state, training, batch)
    without = step_loss(state, training, batch._replace(row_negatives=()))
    assert found - without == pytest.approx(0.7 * expected / weight.sum().item(), rel=1e-3)


def step_loss(state: Checkpoint, training: TrainingSettings, batch: Batch) -> float:
    model = copy.deepcopy(state.model)
    adam = load_adam(model, {}, 0.01)
    stepper = Stepper(model, adam, training, training.full)
    return stepper.step(batch, torch.Generator().manual_seed(0))


def test_without_a_source_the_draws_are_those_of_the_easy_ones_alone(
    lineage: Lineage, trained: tuple[Checkpoint, Examples]
) -> None:
    """Hidden users, uniform items, hidden items, in this order: no draw more, none less."""
    state, examples = trained
    training = lineage.training(HardNegativeSettings())
    batch = batch_of(state, examples, training)
    generator = torch.Generator().manual_seed(3)
    torch.rand(40, generator=generator), torch.rand(40, generator=generator)
    places = torch.randint(len(state.corpus), (training.full.uniform,), generator=generator)
    hidden = torch.rand(40 + len(places), generator=generator) < training.id_dropout.item
    items = np.concatenate([examples.item[:40], state.corpus[places.numpy()]])
    rows = torch.from_numpy(state.items.rows[items]).masked_fill(hidden, 0)
    assert batch.row_negatives == ()
    assert torch.equal(batch.columns.items, torch.from_numpy(items))
    assert torch.equal(batch.item_rows[batch.places], rows)


def test_an_item_is_encoded_once_shown_and_once_hidden(
    lineage: Lineage, trained: tuple[Checkpoint, Examples]
) -> None:
    state, examples = trained
    dropout = msgspec.structs.replace(lineage.project.training.id_dropout, item=0.5)
    training = lineage.training(HardNegativeSettings(), id_dropout=dropout)
    lists = lists_of(len(state.users), len(state.items), 0.2)
    batch = batch_of(state, examples, training, lists)
    items, num_columns = batch.columns.items, len(batch.columns.items)
    places, is_hidden = batch.places[:num_columns], batch.item_rows[batch.places][:num_columns] == 0
    inputs = set(zip(items.tolist(), is_hidden.tolist(), strict=True))
    assert batch.num_column_vectors == len(inputs) < num_columns
    assert 0.3 < is_hidden.float().mean() < 0.7
    assert places.unique().tolist() == list(range(len(inputs)))
    assert (batch.places[num_columns:] >= len(inputs)).all()
    rows = torch.from_numpy(state.items.rows)[items]
    assert torch.equal(batch.item_rows[places], rows.masked_fill(is_hidden, 0))
    features = torch.from_numpy(state.item_profiles.multi)[items].long()
    assert torch.equal(batch.item_features.multi[places], features)


def test_the_same_seed_gives_the_same_bits(lineage: Lineage) -> None:
    training = lineage.training(LOGGED)
    first = lineage.full(lineage.base, DAYS[0], training).arrays()
    again = lineage.full(lineage.base, DAYS[0], training).arrays()
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)


def test_ranks_that_hold_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="mined_from of at most mined_to = 10, found 11"):
        HardNegativeSettings(mined_from=11, mined_to=10)
