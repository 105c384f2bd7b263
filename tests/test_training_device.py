"""Training on another device: what is asked of it, what moves there and back, what stays equal.

No device but the CPU is needed. Tensors on `meta` have shapes and no values: whatever mixes them
with the CPU's, or has to read one, fails there as it would make a device wait.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_checkpoint import CUT_MS, tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.data.examples import Examples, build_examples
from twotower.data.user_state import take_ragged
from twotower.errors import ConfigError
from twotower.model import column_table, embedding_table, tiled_listwise, towers
from twotower.progress import SILENT
from twotower.publishing.trainer_vectors import trainer_item_vectors, trainer_user_vectors
from twotower.training import training_pass
from twotower.training.batches import Batch, BatchMaker, NegativeLists
from twotower.training.device import LossSum, made_ahead, moved, moved_for, training_device
from twotower.training.settings import PassSettings, TrainingSettings
from twotower.training.step import Stepper, load_adam, save_adam
from twotower.training.training_pass import AfterEpoch, run_pass

META, CPU = torch.device("meta"), torch.device("cpu")
SCHEDULE = PassSettings(epochs=2, batch_size=32, uniform=24)
LOSSES = ["listwise", "pointwise", "cosine_contrastive", "pairwise_logistic"]


def training_of(loss: str = "listwise", **negatives: Any) -> TrainingSettings:
    changes = {"per_positive": 0, **negatives}
    return msgspec.convert({"loss": loss, "negatives": changes, "threads": 1}, TrainingSettings)


def make_state(**shape: Any) -> Checkpoint:
    return tiny_checkpoint(has_rich_items=True, **shape)


def examples_of(state: Checkpoint, count: int = 150) -> Examples:
    rng = np.random.default_rng(3)
    return build_examples(
        event_id=np.arange(count, dtype=np.uint64),
        user=rng.integers(0, len(state.users), count),
        item=rng.integers(0, len(state.items), count),
        event_time_ms=CUT_MS + np.arange(count),
        recent=state.user_state.recent,
        num_users=len(state.users),
        history_length=4,
    )


def maker_of(state: Checkpoint, training: TrainingSettings, *, finds_hits: bool) -> BatchMaker:
    examples = examples_of(state)
    log_probability = np.full(len(examples), -4, np.float32)
    hard = NegativeLists(state.user_state.recent, share=0.1, weight=0.5)
    return BatchMaker(
        state, examples, log_probability, training, SCHEDULE, [hard], finds_hits=finds_hits
    )


def batch_of(state: Checkpoint, training: TrainingSettings, *, finds_hits: bool = True) -> Batch:
    maker = maker_of(state, training, finds_hits=finds_hits)
    return maker.make(np.arange(32), torch.Generator().manual_seed(0))


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)


def train(
    state: Checkpoint, training: TrainingSettings, after_epoch: AfterEpoch | None = None
) -> dict[str, Tensor]:
    """Everything that a pass over 150 examples, twice, leaves behind, and its loss."""
    examples = examples_of(state)
    trained = run_pass(
        state,
        examples,
        np.full(len(examples), -4, np.float32),
        training=training,
        schedule=SCHEDULE,
        pass_number=1,
        progress=SILENT,
        task="pass",
        after_epoch=after_epoch,
    )
    tables = state.model.tables
    return {
        "loss": torch.tensor(trained.loss),
        **{name: table.weight for name, table in tables.items()},
        **{f"{name} accumulator": table.accumulator for name, table in tables.items()},
        **{name: value.detach() for name, value in state.model.dense_parameters().items()},
        **state.optimizer,
    }


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert training_device("auto") == training_device("cuda") == torch.device("cuda", 0)
    assert training_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device("auto") == training_device("cpu") == CPU


def test_cuda_without_a_device_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state, training = make_state(), msgspec.structs.replace(training_of(), device="cuda")
    before = copy.deepcopy(state.model.tables["user_id"].weight)
    with pytest.raises(ConfigError, match=r'expected a device for training\.device = "cuda"'):
        train(state, training)
    assert torch.equal(state.model.tables["user_id"].weight, before)


@pytest.mark.parametrize("pooling", ["mean", "sqrt"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_a_listwise_step_makes_nothing_on_the_cpu_and_asks_the_device_for_nothing(
    in_batch: bool, pooling: Any
) -> None:
    state = make_state(history_pooling=pooling)
    training = training_of(in_batch=in_batch)
    batch = moved(batch_of(state, training), META)
    assert all(tensor.device == META for tensor in tensors_of(batch))
    state.model.move_to(META)
    adam = load_adam(state.model, {}, 0.01)
    loss = Stepper(state.model, adam, training, SCHEDULE).start(batch, torch.Generator())
    assert loss.device == META
    assert loss.shape == ()


def test_the_model_is_on_the_device_for_the_length_of_the_block() -> None:
    model = make_state().model

    def devices() -> set[torch.device]:
        dense = {parameter.device for parameter in model.dense_parameters().values()}
        tables = model.tables.values()
        return dense | {table.weight.device for table in tables} | {
            table.accumulator.device for table in tables
        }  # fmt: skip

    with moved_for(model, CPU):
        assert devices() == {CPU}
    values = model.tables["user_id"].weight
    model.move_to(CPU)
    assert model.tables["user_id"].weight is values
    model.move_to(META)
    assert devices() == {META}
    assert model.device == META


def test_the_model_comes_back_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[torch.device] = []
    model = make_state().model
    monkeypatch.setattr(model, "move_to", moves.append)
    with pytest.raises(RuntimeError), moved_for(model, META):
        raise RuntimeError
    assert moves == [META, CPU]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_the_forms_for_another_device_give_the_same_model(
    loss: str, in_batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, training = make_state(), training_of(loss, in_batch=in_batch)
    other = copy.deepcopy(state)
    expected = train(state, training)
    distinct = embedding_table.distinct_unsized
    monkeypatch.setattr(embedding_table, "_distinct", lambda rows, _: distinct(rows))
    monkeypatch.setattr(column_table, "_can_bound", lambda _: False)
    monkeypatch.setattr(tiled_listwise, "_TILE_LOGITS", 2**28)
    monkeypatch.setattr(training_pass, "made_ahead", ahead_as_beside_a_device)
    found = train(other, training)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def ahead_as_beside_a_device(make: Any, sources: Any, device: torch.device) -> Iterator[Any]:
    return made_ahead(make, sources, META)


@pytest.mark.parametrize("in_batch", [True, False])
def test_hits_found_beforehand_are_those_that_the_loss_finds(in_batch: bool) -> None:
    state, training = make_state(), training_of(in_batch=in_batch)
    found = batch_of(state, training, finds_hits=True)
    plain = batch_of(state, training, finds_hits=False)
    assert found.columns.known is None
    assert found.columns.hits is not None
    assert len(found.columns.hits.rows) > 0

    def loss(batch: Batch) -> float:
        model = copy.deepcopy(state.model)
        return Stepper(model, None, training, SCHEDULE).step(batch, torch.Generator())

    assert loss(found) == loss(plain)
    nothing = found.columns.hits._replace(
        rows=torch.zeros(0, dtype=torch.int64), places=torch.zeros(0, dtype=torch.int64)
    )
    assert loss(found._replace(columns=found.columns._replace(hits=nothing))) > loss(plain)


def test_values_that_are_not_there_have_no_part_in_a_mean() -> None:
    values = torch.arange(12.0).reshape(6, 2)
    present = torch.tensor([[[True, False, True]], [[False, True, False]]])
    found = towers._mean_of_present(values, present)
    assert found.tolist() == [[[2.0, 3.0]], [[8.0, 9.0]]]


def test_rows_are_found_without_asking_how_many_there_are() -> None:
    rows = torch.tensor([7, 3, 7, 7, 0, 3])
    distinct, places = embedding_table.distinct_unsized(rows)
    assert distinct.tolist() == [0, 3, 7, 0, 0, 0]
    assert torch.equal(distinct[places], rows)
    assert int(places.max()) == 2
    assert [len(part) for part in embedding_table.distinct_unsized(rows[:0])] == [0, 0]


def test_batches_are_made_ahead_in_order_and_by_other_threads() -> None:
    makers: set[int] = set()
    asked: list[int] = []

    def make(number: int) -> int:
        makers.add(threading.get_ident())
        asked.append(number)
        return number * number

    assert list(made_ahead(make, range(40), META)) == [n * n for n in range(40)]
    assert threading.get_ident() not in makers
    makers.clear()
    asked.clear()
    one_by_one = made_ahead(make, range(40), CPU)
    assert next(one_by_one) == 0
    assert asked == [0]
    assert makers == {threading.get_ident()}


def test_an_error_of_a_maker_is_the_passs() -> None:
    def make(number: int) -> float:
        return 1 / (5 - number)

    with pytest.raises(ZeroDivisionError):
        list(made_ahead(make, range(40), META))


def test_a_sum_of_losses_is_the_same_where_it_is_read_rarely() -> None:
    losses = torch.rand(120, generator=torch.Generator().manual_seed(0))
    at_once, rarely = LossSum(0.5, CPU), LossSum(0.5, CPU)
    rarely._on_device = torch.tensor(0.5, dtype=torch.float64)
    read = [rarely.add(loss, 3 + n) for n, loss in enumerate(losses)]
    said = [at_once.add(loss, 3 + n) for n, loss in enumerate(losses)]
    assert said == losses.tolist()
    assert read == [said[n - n % 50] for n in range(120)]
    assert rarely.total() == pytest.approx(at_once.total(), rel=1e-12)
    assert at_once.total() == pytest.approx(0.5 + sum((3 + n) * x for n, x in enumerate(said)))


def test_what_adam_knows_is_stored_on_the_cpu_as_a_copy() -> None:
    state = make_state()
    train(state, training_of())
    adam = load_adam(state.model, state.optimizer, 0.01)
    saved = save_adam(state.model, adam)
    for name, value in state.optimizer.items():
        assert torch.equal(saved[name], value)
        saved[name] += 1
    assert all(torch.equal(save_adam(state.model, adam)[n], v) for n, v in state.optimizer.items())


def test_vectors_are_asked_from_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    state, asked = make_state(), []
    for name in ("encode_users", "encode_items"):
        original = getattr(state.model, name)

        def spied(*inputs: Any, original: Any = original) -> Any:
            asked.append({tensor.device for tensor in tensors_of(inputs)})
            return original(*inputs)

        monkeypatch.setattr(state.model, name, spied)
    state.model.move_to(META)
    for vectors in (trainer_user_vectors, trainer_item_vectors):
        with pytest.raises(NotImplementedError, match="meta"):  # values are nowhere to be copied
            vectors(state, np.arange(5))
    assert asked == [{META}, {META}]


def test_known_positives_that_are_no_column_are_left_out_and_no_others() -> None:
    state = make_state()
    maker, indices = maker_of(state, training_of(), finds_hits=False), np.arange(32)
    examples = examples_of(state)
    columns = torch.tensor([4, 9, 9, 30, 51])
    expected = set()
    for row, index in enumerate(indices):
        start, end = examples.history_start[index : index + 1], examples.history_end[[index]]
        past = take_ragged(examples.past, start, end).values
        of_user = examples.item[examples.user == examples.user[index]]
        expected |= {(row, item) for item in [*past.tolist(), *of_user.tolist()]}
    found = maker._known.among(columns, indices)
    pairs = set(zip(found.rows.tolist(), found.items.tolist(), strict=True))
    assert pairs == {pair for pair in expected if pair[1] in columns.tolist()}
    assert 0 < len(pairs) < len(expected)
