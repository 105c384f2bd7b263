"""Effect tests of the embedding table."""

import numpy as np
import pytest
import torch

from twotower.model.embedding_table import EmbeddingTable


def table(num_rows: int = 8, dim: int = 4) -> EmbeddingTable:
    return EmbeddingTable.create(num_rows, dim, std=0.1, generator=torch.Generator().manual_seed(0))


def test_a_step_is_row_wise_adagrad_on_the_touched_rows_alone() -> None:
    made = table()
    before = made.weight.clone()
    looked_up = made.lookup(torch.tensor([2, 5, 2]))
    factor = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    (looked_up.embed() * factor).sum().backward()
    looked_up.apply_gradient(0.1)
    gradient = {2: 2 * factor[0], 5: factor[0]}
    for row in range(8):
        if row not in gradient:
            assert torch.equal(made.weight[row], before[row])
            assert made.accumulator[row] == 0
            continue
        mean_square = gradient[row].square().mean()
        torch.testing.assert_close(made.accumulator[row], mean_square)
        expected = before[row] - 0.1 * gradient[row] / mean_square.sqrt()
        torch.testing.assert_close(made.weight[row], expected)


@pytest.mark.parametrize("num_rows", [3, 50, 20_000])
def test_rows_are_found_once_each_in_a_table_of_any_size(num_rows: int) -> None:
    rows = torch.randint(num_rows, (200,), generator=torch.Generator().manual_seed(1))
    made = table(num_rows)
    looked_up = made.lookup(rows)
    assert torch.equal(looked_up.rows, rows.unique())
    assert torch.equal(looked_up.rows[looked_up.inverse], rows)
    assert torch.equal(looked_up.embed(20, 90), made.weight[rows[20:90]])


def test_the_accumulator_shortens_later_steps_and_its_decay_lengthens_them() -> None:
    made = table()

    def step() -> float:
        before = made.weight[1].clone()
        looked_up = made.lookup(torch.tensor([1]))
        looked_up.embed().sum().backward()
        looked_up.apply_gradient(0.1)
        return float((made.weight[1] - before).norm())

    first, second = step(), step()
    assert second < first
    made.decay(0.01)
    assert step() > second


def test_new_rows_are_copies_with_an_accumulator_of_zero() -> None:
    made = table()
    made.accumulator += 3
    made.grow(np.array([0, 4]))
    assert torch.equal(made.weight[8], made.weight[0])
    assert torch.equal(made.weight[9], made.weight[4])
    assert made.accumulator.tolist() == [3.0] * 8 + [0.0, 0.0]


def test_a_pool_is_the_mean_of_its_bag_and_zero_when_empty() -> None:
    made = table()
    looked_up = made.lookup(torch.tensor([7, 1, 2, 3]))
    pooled = looked_up.pool(torch.tensor([0, 2, 2]), start=1)
    torch.testing.assert_close(pooled[0], made.weight[[1, 2]].mean(0))
    assert pooled[1].tolist() == [0.0] * 4
    torch.testing.assert_close(pooled[2], made.weight[3])
    assert made.lookup(torch.zeros(0, dtype=torch.int64)).pool(torch.zeros(2)).shape == (2, 4)


def test_the_gradient_of_a_pool_is_that_of_the_means() -> None:
    made, generator = table(40), torch.Generator().manual_seed(2)
    rows = torch.randint(30, (60,), generator=generator)
    lengths = torch.tensor([5, 0, 20, 1, 34, 0])
    outer = torch.randn(len(lengths), made.dim, generator=generator)
    looked_up = made.lookup(rows)
    (looked_up.pool(lengths.cumsum(0) - lengths) * outer).sum().backward()
    plain = made.weight.clone().requires_grad_()
    bags = zip(rows.split(lengths.tolist()), outer, strict=True)
    sum((plain[bag].mean(0) * one).sum() for bag, one in bags if len(bag)).backward()
    before = made.weight.clone()
    looked_up.apply_gradient(0.1)
    assert plain.grad is not None
    moved = plain.grad / (plain.grad.square().mean(1, keepdim=True).sqrt() + 1e-8)
    torch.testing.assert_close(made.weight, before - 0.1 * moved)
