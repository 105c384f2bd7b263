"""Effect tests: each fails when its formula is deleted or its sign is flipped."""

import math

import pytest
import torch
from torch import Tensor

from twotower.model.losses import (
    listwise,
    pairwise_hinge,
    pairwise_logistic,
    pointwise,
    select_loss,
)

NAMES = ["pointwise", "cosine_contrastive", "pairwise_hinge", "pairwise_logistic", "listwise"]


def logits(rows: int = 6, columns: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(rows, generator=generator),
        torch.randn(rows, columns, generator=generator),
    )


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_rows_permutes_the_losses(name: str) -> None:
    positives, negatives = logits()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    loss = select_loss(name, margin=5.0)
    torch.testing.assert_close(
        loss(positives[order], negatives[order]), loss(positives, negatives)[order]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_raises_the_positive_and_lowers_every_negative(name: str) -> None:
    positives, negatives = (values.requires_grad_() for values in logits())
    margin = -50.0 if name == "cosine_contrastive" else 50.0
    select_loss(name, margin=margin)(positives, negatives).sum().backward()
    assert positives.grad is not None
    assert negatives.grad is not None
    assert (positives.grad < 0).all()
    assert (negatives.grad > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_column_changes_nothing(name: str) -> None:
    positives, negatives = logits()
    masked = torch.cat([negatives, torch.full((6, 2), -torch.inf)], dim=1)
    loss = select_loss(name, margin=5.0)
    torch.testing.assert_close(loss(positives, masked), loss(positives, negatives))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_negatives_has_a_finite_loss_and_gradient(name: str) -> None:
    positives = torch.zeros(1, requires_grad=True)
    loss = select_loss(name, margin=5.0)(positives, torch.full((1, 3), -torch.inf))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert positives.grad is not None
    assert torch.isfinite(positives.grad).all()


def test_pointwise_is_the_binary_cross_entropy_of_every_pair() -> None:
    found = pointwise(torch.tensor([2.0]), torch.tensor([[1.0, -3.0]]))
    expected = [-math.log(sigmoid(2.0)), -math.log(1 - sigmoid(1.0)), -math.log(1 - sigmoid(-3.0))]
    assert found.item() == pytest.approx(sum(expected))


def test_hinge_is_zero_beyond_the_margin_and_linear_within() -> None:
    positives, negatives = torch.tensor([2.0, 2.0]), torch.tensor([[1.0], [1.9]])
    found = pairwise_hinge(positives, negatives, margin=0.5)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.4]))


def test_cosine_contrastive_counts_negatives_above_the_margin_alone() -> None:
    positives, negatives = torch.tensor([3.0, 1.0]), torch.tensor([[2.0, 5.0], [0.5, 0.9]])
    loss = select_loss("cosine_contrastive", margin=1.0, negative_weight=10.0)
    torch.testing.assert_close(
        loss(positives, negatives), torch.tensor([10 * (1.0 + 4.0) / 2 - 3.0, -1.0])
    )


def test_pairwise_logistic_of_equal_logits_is_log_two() -> None:
    found = pairwise_logistic(torch.tensor([1.5]), torch.tensor([[1.5, 1.5]]))
    assert found.item() == pytest.approx(math.log(2))


def test_listwise_of_equal_logits_is_the_log_of_the_number_of_candidates() -> None:
    found = listwise(torch.tensor([0.7]), torch.full((1, 9), 0.7))
    assert found.item() == pytest.approx(math.log(10))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
