"""The tiled loss equals the plain one: value, both gradients, every option."""

import pytest
import torch

from twotower.model.logits import Columns, LogitRules, training_logits
from twotower.model.losses import listwise
from twotower.model.tiled_listwise import tiled_listwise

NUM_ITEMS = 40


@pytest.mark.parametrize("num_uniform", [0, 100])
@pytest.mark.parametrize("num_rows", [1, 128, 300])
@pytest.mark.parametrize("correct_positive", [True, False])
def test_it_equals_the_plain_form(num_rows: int, num_uniform: int, correct_positive: bool) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    num_columns = num_rows + num_uniform
    rules = LogitRules(
        temperature=0.1, correct_positive=correct_positive, in_batch=True, per_positive=None
    )
    columns = Columns(
        torch.randint(NUM_ITEMS, (num_columns,), generator=generator),
        torch.randn(num_columns, generator=generator),
    )
    weight = torch.rand(num_rows, generator=generator) + 0.1

    def vectors(size: int) -> torch.Tensor:
        made = torch.randn(size, 16, generator=generator)
        return torch.nn.functional.normalize(made, dim=1).requires_grad_()

    users, items = vectors(num_rows), vectors(num_columns)
    positives, negatives = training_logits(users @ items.T, columns, rules, generator)
    plain = (listwise(positives, negatives) * weight).sum() / weight.sum()
    tiled = tiled_listwise(users, items, columns, rules, weight)
    torch.testing.assert_close(tiled, plain, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(3 * plain, [users, items])
    found = torch.autograd.grad(3 * tiled, [users, items])
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm() + 1e-7
