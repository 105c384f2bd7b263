"""Negatives of one row alone, such as hard ones: a weighted term of their own, never corrected.

An easy negative is a draw from all items, and logQ makes a sum over draws estimate the sum over
the corpus. A hard negative is not drawn from all items: it is on the list because a later stage
knew something of this very user and item. It has no probability `q` to correct by, and mixed into
the corrected sum it would count for one item in the corpus. So it stands in a term beside that
sum, and its own weight says how much it matters (Huang et al. 2020, section 6.1, mix hard and easy
negatives at a chosen ratio too; Yang et al. 2020 correct what is sampled, and only that).
Legend: `B` examples, `V` item vectors of a step, `H` negatives a row, `D` dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from twotower.model.losses import Loss, select_loss

__all__ = [
    "NO_ITEM",
    "RowNegatives",
    "draw_listed",
    "place_items",
    "row_negative_loss",
    "select_row_loss",
]

NO_ITEM = -1
"""Fills the places of a row that has fewer negatives than `H`."""


class RowNegatives(NamedTuple):
    """The negatives of each row of a batch, from one source."""

    places: Tensor
    """`int64[B, H]`, places among the step's item vectors, `NO_ITEM` where there is none."""
    weight: float
    """Of the term beside the loss over the easy negatives."""


def draw_listed(
    values: Tensor, starts: Tensor, lengths: Tensor, per_row: float, generator: torch.Generator
) -> Tensor:
    """Return `per_row` distinct values of each row's list, `int64[B, H]`, `H` = `per_row` up.

    A row with a shorter list gets all of it. Of `per_row` = 2.3 every row gets two and a share of
    0.3 of the rows, drawn anew, a third: to within one row a batch, and right on average. Lists
    must be in random order: a row takes neighbours, from a random place on and around, so every
    value is as likely as any other.

    Args:
        values: all lists, one after the other.
        starts: `int64[B]`, where each row's list begins.
        lengths: `int64[B]`.
        per_row: negatives a row, not necessarily whole.
        generator: source of randomness.
    """
    num_rows, whole = len(starts), int(per_row)
    chance = torch.rand(1, generator=generator).item()
    num_more = int((per_row - whole) * num_rows + chance)
    slots = torch.arange(whole + (num_more > 0))
    turn = (torch.rand(num_rows, generator=generator) * lengths).long()
    gets_more = torch.randperm(num_rows, generator=generator) < num_more
    is_there = slots < torch.where(gets_more, whole + 1, whole).minimum(lengths)[:, None]
    places = starts[:, None] + (turn[:, None] + slots) % lengths.clamp_min(1)[:, None]
    padded = functional.pad(values, (0, 1), value=NO_ITEM)
    return padded[places].masked_fill(~is_there, NO_ITEM)


def place_items(listed: list[Tensor], num_before: int) -> tuple[Tensor, list[Tensor]]:
    """Return the distinct items of all sources, and each source by place among a step's items.

    Args:
        listed: `int64[B, H]` item positions a source, `NO_ITEM` where there is none.
        num_before: items of the step that stand before the returned ones.

    Returns:
        `int64[n]`, each item once, and the places.
    """
    everything = torch.cat([torch.zeros(0, dtype=torch.int64), *(one.flatten() for one in listed)])
    items = everything[everything != NO_ITEM].unique()
    places = [
        torch.where(one == NO_ITEM, NO_ITEM, num_before + torch.searchsorted(items, one))
        for one in listed
    ]
    return items, places


def select_row_loss(name: str, *, margin: float, negative_weight: float = 1.0) -> Loss:
    """Return the loss of the positive against the row's own negatives, for a loss of that name.

    The same one where it compares the two. Pointwise does not: trained with logQ, its uncorrected
    logit is the log of the item's probability for the user, far below zero in a large corpus, where
    `log(1 - s(l_j))` is flat. Only the difference to the positive's means something there, so
    pointwise takes `pairwise_logistic`.

    Args:
        name: of the loss over the easy negatives.
        margin: see `select_loss`.
        negative_weight: see `select_loss`.
    """
    compared = "pairwise_logistic" if name == "pointwise" else name
    return select_loss(compared, margin=margin, negative_weight=negative_weight)


def row_negative_loss(
    loss: Loss, users: Tensor, items: Tensor, places: Tensor, temperature: float
) -> Tensor:
    """Return the loss of each row's positive against its own negatives, `[B]`; 0 without any.

    Of plain logits, `l = cosine / temperature`, on both sides: the positive's is not corrected
    either. Listwise: `log(1 + sum_j exp(l_j - l+))`; the others: the mean over the row's negatives.

    Args:
        loss: see `select_row_loss`.
        users: `[B, D]` user vectors.
        items: `[V, D]` item vectors; row `i`'s positive is the one at place `i`.
        places: `int64[B, H]`, see `RowNegatives`.
        temperature: divides the cosines.
    """
    positives = (users * items[: len(users)]).sum(1) / temperature
    own = functional.embedding(places.clamp_min(0), items)
    logits = torch.einsum("bd,bhd->bh", users, own) / temperature
    return loss(positives, logits.masked_fill(places == NO_ITEM, -torch.inf))
