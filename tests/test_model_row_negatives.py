"""Negatives of a row's own: a term beside the loss, and how they are drawn."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twotower.model.row_negatives import (
    NO_ITEM,
    draw_listed,
    place_items,
    row_negative_loss,
    select_row_loss,
)

NAMES = ["pointwise", "pairwise_hinge", "pairwise_logistic", "listwise"]
TEMPERATURE = 0.5


def vectors(rows: int, seed: int) -> Tensor:
    made = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(made, dim=1).requires_grad_()


def term(name: str, users: Tensor, items: Tensor, places: Tensor) -> Tensor:
    loss = select_row_loss(name, margin=5.0)
    return row_negative_loss(loss, users, items, places, TEMPERATURE)


def by_hand(name: str, positive: float, negatives: list[float]) -> float:
    """The term of one row, of its plain logits, written out."""
    if name == "listwise":
        return math.log(1 + sum(math.exp(logit - positive) for logit in negatives))
    leads = [logit - positive for logit in negatives]
    if name == "pairwise_hinge":
        return sum(max(0.0, 5.0 + lead) for lead in leads) / len(leads)
    return sum(math.log(1 + math.exp(lead)) for lead in leads) / len(leads)


@pytest.mark.parametrize("name", NAMES)
def test_it_compares_plain_logits_of_the_positive_and_its_own_negatives(name: str) -> None:
    users, items = vectors(2, 0), vectors(7, 1)
    places = torch.tensor([[4, 6, 2], [5, NO_ITEM, NO_ITEM]])
    found = term(name, users, items, places)
    logits = (users @ items.T / TEMPERATURE).detach()
    expected = [
        by_hand(name, logits[0, 0].item(), logits[0, [4, 6, 2]].tolist()),
        by_hand(name, logits[1, 1].item(), logits[1, [5]].tolist()),
    ]
    torch.testing.assert_close(found.detach(), torch.tensor(expected))


@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_pushes_the_negative_away(name: str) -> None:
    users, items = vectors(3, 2), vectors(5, 3)
    places = torch.tensor([[3], [4], [NO_ITEM]])
    term(name, users, items, places).sum().backward()
    assert items.grad is not None
    for row, place in ((0, 3), (1, 4)):
        assert items.grad[place] @ users[row] > 0
        assert items.grad[row] @ users[row] < 0


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_any_adds_exactly_nothing(name: str) -> None:
    users, items = vectors(3, 4), vectors(5, 5)
    for places in (torch.full((3, 2), NO_ITEM), torch.zeros(3, 0, dtype=torch.int64)):
        found = term(name, users, items, places)
        found.sum().backward()
        assert found.tolist() == [0.0, 0.0, 0.0]
        assert users.grad is not None
        assert torch.count_nonzero(users.grad) == 0


def lists(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lists whose values name their list: 100, 101, ... of the first, 200, ... of the second."""
    values = [100 * (n + 1) + torch.arange(length) for n, length in enumerate(lengths)]
    sizes = torch.tensor(lengths)
    return torch.cat(values), sizes.cumsum(0) - sizes, sizes


def draw(per_row: float, lengths: list[int], seed: int = 0) -> Tensor:
    return draw_listed(*lists(*lengths), per_row, torch.Generator().manual_seed(seed))


def test_a_row_gets_distinct_values_of_its_own_list() -> None:
    drawn = draw(3, [9, 2, 0, 4])
    assert drawn.shape == (4, 3)
    assert (drawn != NO_ITEM).sum(1).tolist() == [3, 2, 0, 3]
    for row, values in enumerate(drawn.tolist()):
        own = [value for value in values if value != NO_ITEM]
        assert len(set(own)) == len(own)
        assert all(value // 100 == row + 1 for value in own)


@pytest.mark.parametrize("per_row", [0.03, 0.5, 2.3, 15.36])
def test_the_number_a_row_is_kept_by_count(per_row: float) -> None:
    counts = [int((draw(per_row, [40] * 50, seed) != NO_ITEM).sum()) for seed in range(60)]
    assert all(abs(count - 50 * per_row) < 1 for count in counts)
    assert sum(counts) / len(counts) == pytest.approx(50 * per_row, abs=0.25)


def test_every_value_is_as_likely_as_any_other() -> None:
    drawn = torch.cat([draw(2, [7] * 20, seed) % 100 for seed in range(300)])
    counts = torch.bincount(drawn.flatten(), minlength=7).double()
    assert (counts / counts.sum() - 1 / 7).abs().max() < 0.01


def test_lists_without_any_value_give_none() -> None:
    assert draw(2, [0, 0]).tolist() == [[NO_ITEM] * 2] * 2


def test_items_of_all_sources_are_encoded_once_and_found_again() -> None:
    first = torch.tensor([[7, 3], [NO_ITEM, 9]])
    second = torch.tensor([[3], [8]])
    items, places = place_items([first, second], 100)
    assert items.tolist() == [3, 7, 8, 9]
    assert places[0].tolist() == [[101, 100], [NO_ITEM, 103]]
    assert places[1].tolist() == [[100], [102]]
    assert place_items([], 5)[0].tolist() == []
