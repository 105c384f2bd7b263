"""Effect tests of sampling and its correction."""

from typing import Any

import pytest
import torch

from twotower.model.logits import Columns, KnownPositives, LogitRules, training_logits
from twotower.model.negatives import (
    accidental_hits,
    columns_holding,
    draw_uniform,
    log_expected_count,
)

NUM_ITEMS, BATCH = 40, 64
SOURCES = [(BATCH, 0), (0, 64), (BATCH, 64), (BATCH, 16)]


def popularity() -> torch.Tensor:
    weights = 1 / torch.arange(1, NUM_ITEMS + 1).float()
    return weights / weights.sum()


def rules(**changes: Any) -> LogitRules:
    plain = LogitRules(
        temperature=1.0,
        correct_positive=True,
        in_batch=True,
        per_positive=None,
    )
    return plain._replace(**changes)


def columns(items: list[int], log_count: float | torch.Tensor = 0.0) -> Columns:
    positions = torch.tensor(items)
    counts = torch.as_tensor(log_count).expand(len(items))
    return Columns(positions, counts)


def draw(num_in_batch: int, num_uniform: int, generator: torch.Generator) -> torch.Tensor:
    in_batch = torch.multinomial(popularity(), BATCH, replacement=True, generator=generator)
    uniform = draw_uniform(torch.arange(NUM_ITEMS), num_uniform, generator)
    return torch.cat([in_batch[:num_in_batch], uniform])


@pytest.mark.parametrize(("num_in_batch", "num_uniform"), SOURCES)
def test_log_q_makes_the_sampled_sum_an_unbiased_estimate_of_the_full_one(
    num_in_batch: int, num_uniform: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(NUM_ITEMS, generator=generator)
    estimates = []
    for _ in range(4000):
        items = draw(num_in_batch, num_uniform, generator)
        log_count = log_expected_count(
            popularity().log()[items],
            num_in_batch=num_in_batch,
            num_uniform=num_uniform,
            num_corpus=NUM_ITEMS,
            correction="mixture",
        )
        estimates.append((scores[items] - log_count).exp().sum())
    assert torch.stack(estimates).mean().item() == pytest.approx(
        scores.exp().sum().item(), rel=0.02
    )


def test_per_source_estimates_the_full_sum_once_for_each_source() -> None:
    generator = torch.Generator().manual_seed(1)
    estimates = []
    for _ in range(4000):
        items = draw(BATCH, 32, generator)
        log_count = log_expected_count(
            popularity().log()[items],
            num_in_batch=BATCH,
            num_uniform=32,
            num_corpus=NUM_ITEMS,
            correction="per_source",
        )
        estimates.append((-log_count).exp().sum())
    assert torch.stack(estimates).mean().item() == pytest.approx(2 * NUM_ITEMS, rel=0.02)


@pytest.mark.parametrize("correction", ["mixture", "per_source"])
def test_without_the_batch_positives_are_corrected_as_uniform_draws(correction: str) -> None:
    found = log_expected_count(
        torch.tensor([-1.0, -9.0]),
        num_in_batch=0,
        num_uniform=20,
        num_corpus=40,
        correction=correction,
    )
    torch.testing.assert_close(found.exp(), torch.tensor([0.5, 0.5]))


def test_uniform_draws_come_evenly_from_the_corpus_alone() -> None:
    corpus = torch.tensor([3, 5, 8])
    drawn = draw_uniform(corpus, 30_000, torch.Generator().manual_seed(0))
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [3, 5, 8]
    assert (counts - 10_000).abs().max() < 400


def test_an_accidental_hit_never_enters_the_loss() -> None:
    scores = torch.zeros(3, 4)
    _, negatives = training_logits(
        scores, columns([7, 9, 7, 9]), rules(), torch.Generator().manual_seed(0)
    )
    assert torch.isinf(negatives).tolist() == [
        [True, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
    ]
    assert accidental_hits(torch.tensor([7]), torch.tensor([7, 8])).tolist() == [[True, False]]


def test_a_known_positive_of_a_row_never_enters_its_loss_and_may_enter_anothers() -> None:
    known = KnownPositives(torch.tensor([0, 0, 2, 2]), torch.tensor([9, 5, 7, 8]))
    _, negatives = training_logits(
        torch.zeros(3, 5),
        columns([7, 9, 7, 9, 8])._replace(known=known),
        rules(),
        torch.Generator().manual_seed(0),
    )
    assert torch.isinf(negatives).tolist() == [
        [True, True, True, True, False],
        [False, True, False, True, False],
        [True, False, True, False, True],
    ]


def test_columns_holding_an_item_are_found_row_by_row_without_the_rows_own() -> None:
    rows, found = columns_holding(
        torch.tensor([2, 0, 0]),
        torch.tensor([7, 9, 3]),
        torch.tensor([7, 9, 7, 9]),
        torch.tensor([0, 1, 2]),
    )
    assert list(zip(rows.tolist(), found.tolist(), strict=True)) == [(0, 1), (0, 3), (2, 0)]


def test_the_temperature_divides_the_scores() -> None:
    scores = torch.tensor([[0.5, -0.2], [0.1, 0.3]])
    warm = training_logits(scores, columns([1, 2]), rules(temperature=1.0), torch.Generator())
    cold = training_logits(scores, columns([1, 2]), rules(temperature=0.1), torch.Generator())
    torch.testing.assert_close(cold[0], 10 * warm[0])
    assert cold[1][0, 1].item() == pytest.approx(-2.0)


def test_the_correction_is_subtracted_from_negatives_and_by_choice_from_positives() -> None:
    held = columns([1, 2], torch.tensor([0.5, -1.0]))
    both, negatives = training_logits(torch.zeros(2, 2), held, rules(), torch.Generator())
    plain, _ = training_logits(
        torch.zeros(2, 2), held, rules(correct_positive=False), torch.Generator()
    )
    assert both.tolist() == [-0.5, 1.0]
    assert plain.tolist() == [0.0, 0.0]
    assert negatives[0, 1].item() == 1.0
    assert negatives[1, 0].item() == -0.5


def test_without_the_batch_as_a_source_only_uniform_columns_are_negatives() -> None:
    _, negatives = training_logits(
        torch.zeros(2, 5), columns([1, 2, 3, 4, 5]), rules(in_batch=False), torch.Generator()
    )
    assert negatives.shape == (2, 3)


def test_chosen_negatives_of_a_loss_without_correction_keep_their_scores() -> None:
    held, scores = columns([1, 2, 3]), torch.full((1, 3), 0.25)
    plain = rules(per_positive=1, is_corrected=False)
    positives, negatives = training_logits(scores, held, plain, torch.Generator())
    assert positives.tolist() == [0.25]
    assert {value for value in negatives.flatten().tolist() if value > -torch.inf} <= {0.25}


def test_chosen_negatives_keep_the_sum_an_unbiased_estimate() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 33, generator=generator)
    held = columns(list(range(33)))
    full = training_logits(scores, held, rules(), generator)[1].exp().sum()
    chosen = [
        training_logits(scores, held, rules(per_positive=3), generator)[1].exp().sum()
        for _ in range(6000)
    ]
    assert torch.stack(chosen).mean().item() == pytest.approx(full.item(), rel=0.03)
