"""The tiled loss equals the plain one: value, both gradients, every option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twotower.model import column_table
from twotower.model import tiled_listwise as module
from twotower.model.lanes import num_lanes
from twotower.model.logits import Columns, KnownPositives, LogitRules, training_logits
from twotower.model.losses import listwise
from twotower.model.tiled_listwise import tiled_listwise

NUM_ITEMS = 40


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred rows are many tiles."""
    monkeypatch.setattr(module, "_TILE_LOGITS", 2**12)


class Case(NamedTuple):
    """One batch and how its columns share vectors."""

    users: Tensor
    vectors: Tensor
    places: Tensor
    columns: Columns
    weight: Tensor


def make_case(num_rows: int, num_uniform: int, sharing: str, *, num_items: int = NUM_ITEMS) -> Case:
    """Items that occur many times, each with one vector, one of two, or one a column."""
    generator = torch.Generator().manual_seed(num_rows)
    num_columns = num_rows + num_uniform
    items = torch.randint(num_items, (num_columns,), generator=generator)
    is_hidden = torch.rand(num_columns, generator=generator) < 0.3
    inputs = {
        "an item": items,
        "shown or hidden": 2 * items + is_hidden,
        "a column": torch.arange(num_columns),
    }[sharing]
    distinct, places = torch.unique(inputs, return_inverse=True)

    def vectors(size: int) -> Tensor:
        made = torch.randn(size, 16, generator=generator)
        return torch.nn.functional.normalize(made, dim=1).requires_grad_()

    return Case(
        users=vectors(num_rows),
        vectors=vectors(len(distinct)),
        places=places,
        columns=Columns(items, 2 * torch.randn(num_columns, generator=generator)),
        weight=torch.rand(num_rows, generator=generator) + 0.1,
    )


def rules_of(
    temperature: float = 0.1, *, correct_positive: bool = True, in_batch: bool = True
) -> LogitRules:
    return LogitRules(temperature, correct_positive, in_batch=in_batch, per_positive=None)


def plain(case: Case, rules: LogitRules) -> Tensor:
    scores = case.users @ case.vectors[case.places].T
    logits = training_logits(scores, case.columns, rules, torch.Generator())
    return (listwise(*logits) * case.weight).sum() / case.weight.sum()


def assert_equal_forms(case: Case, rules: LogitRules) -> None:
    expected = plain(case, rules)
    found = tiled_listwise(case.users, case.vectors, case.places, case.columns, rules, case.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    inputs = [case.users, case.vectors]
    theirs = torch.autograd.grad(3 * expected, inputs)
    mine = torch.autograd.grad(3 * found, inputs)
    for one, other in zip(mine, theirs, strict=True):
        # A row without negatives has a gradient of zero, the difference of two that are not.
        rounding = 1e-6 / (rules.temperature * len(case.users))
        assert (one - other).norm() <= 1e-5 * other.norm() + rounding


@pytest.mark.parametrize("sharing", ["an item", "shown or hidden", "a column"])
@pytest.mark.parametrize(("num_rows", "num_uniform"), [(1, 0), (1, 100), (128, 0), (300, 100)])
@pytest.mark.parametrize("correct_positive", [True, False])
def test_it_equals_the_plain_form(
    num_rows: int, num_uniform: int, sharing: str, correct_positive: bool, threads: int
) -> None:
    case = make_case(num_rows, num_uniform, sharing)
    assert_equal_forms(case, rules_of(correct_positive=correct_positive))


@pytest.mark.parametrize("sharing", ["an item", "shown or hidden", "a column"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.003])
def test_known_positives_are_no_negatives_in_either_form(
    temperature: float, sharing: str, threads: int
) -> None:
    case, rules = make_case(200, 60, sharing), rules_of(temperature)
    rows = torch.arange(200).repeat(6)
    items = torch.randint(NUM_ITEMS, (len(rows),), generator=torch.Generator().manual_seed(1))
    spared = case._replace(columns=case.columns._replace(known=KnownPositives(rows, items)))
    assert_equal_forms(spared, rules)
    assert plain(spared, rules) < plain(case, rules)


@pytest.mark.parametrize("sharing", ["an item", "shown or hidden", "a column"])
@pytest.mark.parametrize("temperature", [1.0, 0.02, 0.003])
@pytest.mark.parametrize("correct_positive", [True, False])
def test_logits_of_any_size_are_exact(
    temperature: float, sharing: str, correct_positive: bool, threads: int
) -> None:
    """Those of the lowest temperature leave the range of float32 unless rows are shifted."""
    case = make_case(200, 60, sharing)
    rules = rules_of(temperature, correct_positive=correct_positive)
    assert_equal_forms(case, rules)
    case.columns.log_count[::7] += 100.0
    assert_equal_forms(case, rules)


@pytest.mark.parametrize("sharing", ["an item", "shown or hidden", "a column"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02, 0.003])
@pytest.mark.parametrize("correct_positive", [True, False])
def test_uniform_negatives_alone_equal_the_plain_form(
    temperature: float, sharing: str, correct_positive: bool, threads: int
) -> None:
    case = make_case(200, 150, sharing)
    rules = rules_of(temperature, correct_positive=correct_positive, in_batch=False)
    assert_equal_forms(case, rules)
    corrected = case._replace(columns=case.columns._replace(log_count=torch.zeros(350)))
    assert_equal_forms(corrected, rules)
    rows = torch.arange(200).repeat(6)
    items = torch.randint(NUM_ITEMS, (len(rows),), generator=torch.Generator().manual_seed(1))
    spared = case._replace(columns=case.columns._replace(known=KnownPositives(rows, items)))
    assert_equal_forms(spared, rules)
    assert plain(spared, rules) < plain(case, rules)


@pytest.mark.parametrize("can_bound", [True, False])
def test_a_row_whose_every_column_is_its_positive_has_no_loss(
    can_bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_table, "_can_bound", lambda _: can_bound)
    case = make_case(3, 20, "an item", num_items=1)
    rules = rules_of(in_batch=False)
    assert_equal_forms(case, rules)
    loss = tiled_listwise(*case[:4], rules, case.weight)
    torch.testing.assert_close(loss, torch.tensor(0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("in_batch", [True, False])
def test_rows_that_are_shifted_unasked_equal_the_plain_form(
    in_batch: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_table, "_can_bound", lambda _: False)
    assert_equal_forms(make_case(200, 60, "shown or hidden"), rules_of(in_batch=in_batch))


def test_another_device_takes_larger_tiles() -> None:
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert module._tile_rows(100, cpu) == 2**12 // 100
    assert module._tile_rows(1000, other) == 2**24 // 1000


def test_a_vector_of_several_columns_counts_for_each_of_them() -> None:
    """Two rows and one item three times: `log(e^l+ + 3 e^l-) - l+`, by hand."""
    users = torch.eye(2)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    places = torch.tensor([0, 1, 1, 1])
    columns = Columns(places + 70, torch.zeros(4))
    loss = tiled_listwise(users, vectors, places, columns, rules_of(1.0), torch.ones(2))
    against_three, alone = torch.tensor(torch.e), torch.tensor(torch.e)
    expected = ((against_three + 3).log() - 1 + (alone + 1).log() - 1) / 2
    torch.testing.assert_close(loss, expected)


def test_a_vector_that_no_column_has_changes_nothing() -> None:
    case = make_case(50, 20, "an item")
    rules = rules_of()
    more = torch.cat([case.vectors, torch.ones(3, 16)])
    found = tiled_listwise(case.users, more, case.places, case.columns, rules, case.weight)
    torch.testing.assert_close(found, plain(case, rules))


def test_a_weight_of_zero_takes_a_row_out(threads: int) -> None:
    case = make_case(50, 20, "an item")
    case.weight[5:] = 0.0
    assert_equal_forms(case, rules_of())
    loss = tiled_listwise(*case[:4], rules_of(), case.weight)
    (gradient,) = torch.autograd.grad(loss, case.users)
    assert gradient[5:].count_nonzero() == 0
    assert gradient[:5].count_nonzero() > 0


def test_the_same_threads_give_the_same_bits(threads: int) -> None:
    case = make_case(300, 100, "shown or hidden")
    rules = rules_of()

    def gradients() -> tuple[Tensor, ...]:
        loss = tiled_listwise(*case[:4], rules, case.weight)
        return (loss, *torch.autograd.grad(loss, [case.users, case.vectors]))

    first = gradients()
    for _ in range(5):
        assert all(map(torch.equal, gradients(), first))
    assert num_lanes() == threads


def test_its_memory_grows_with_the_batch_and_not_with_its_square() -> None:
    largest: list[int] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, arguments: Any = (), named: Any = None
        ) -> Any:
            made = function(*arguments, **(named or {}))
            if isinstance(made, Tensor):
                largest.append(made.untyped_storage().nbytes())
            return made

    def largest_tensor(num_rows: int) -> int:
        case = make_case(num_rows, 0, "a column", num_items=10 * num_rows)
        largest.clear()
        with Watch():
            tiled_listwise(*case[:4], rules_of(), case.weight)
        return max(largest)

    assert largest_tensor(1024) <= 2.1 * largest_tensor(512) <= 2.1 * 512 * 16 * 4
