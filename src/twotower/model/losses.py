"""Pointwise, pairwise and listwise losses: functions of logits, on one data contract.

Every loss takes the logit of each example's positive and the logits of its negatives, where
minus infinity says "not a negative of this row", and returns one loss an example.
Legend: `B` examples, `C` negatives a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "cosine_contrastive",
    "listwise",
    "pairwise_hinge",
    "pairwise_logistic",
    "pointwise",
    "select_loss",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def pointwise(positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Return the binary cross-entropy of one positive and its negatives, `[B]`.

    `-log sigmoid(l+) - sum_j log sigmoid(-l_j)`: every pair is judged by itself.

    Args:
        positive_logits: `[B]`.
        negative_logits: `[B, C]`, minus infinity where there is no negative.
    """
    return functional.softplus(-positive_logits) + functional.softplus(negative_logits).sum(1)


def cosine_contrastive(
    positive_logits: Tensor, negative_logits: Tensor, *, margin: float, negative_weight: float
) -> Tensor:
    """Return the cosine contrastive loss of each positive and its negatives, `[B]`.

    `(1 - s+) + w / k sum_j max(0, s_j - m)` (Mao et al. 2021, SimpleX, equation 1) divided by the
    temperature and without its constant: a negative beyond the margin no longer counts, so many of
    them find the hard ones among themselves. Meant for logits without the logQ correction.

    Args:
        positive_logits: `[B]`.
        negative_logits: `[B, C]`, minus infinity where there is no negative.
        margin: `m`, the similarity that a negative may have, in units of the logit.
        negative_weight: `w`, of the mean over the negatives.
    """
    above = (negative_logits - margin).clamp_min(0)
    return negative_weight * _mean_over_negatives(above, negative_logits) - positive_logits


def pairwise_hinge(positive_logits: Tensor, negative_logits: Tensor, *, margin: float) -> Tensor:
    """Return the mean triplet hinge loss `max(0, margin + l_j - l+)` over the negatives, `[B]`.

    Args:
        positive_logits: `[B]`.
        negative_logits: `[B, C]`, minus infinity where there is no negative.
        margin: by how much a positive should lead, in units of the logit.
    """
    lead = margin + negative_logits - positive_logits[:, None]
    return _mean_over_negatives(lead.clamp_min(0), negative_logits)


def pairwise_logistic(positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Return the mean triplet logistic loss `log(1 + exp(l_j - l+))` over the negatives, `[B]`.

    Args:
        positive_logits: `[B]`.
        negative_logits: `[B, C]`, minus infinity where there is no negative.
    """
    lead = negative_logits - positive_logits[:, None]
    return _mean_over_negatives(functional.softplus(lead), negative_logits)


def listwise(positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Return the softmax cross-entropy of the positive among its negatives, `[B]`.

    `-l+ + log(exp(l+) + sum_j exp(l_j))`; with logits corrected by the log of each column's
    expected count it estimates the softmax over the whole corpus (Yi et al. 2019, equation 5).

    Args:
        positive_logits: `[B]`.
        negative_logits: `[B, C]`, minus infinity where there is no negative.
    """
    logits = torch.cat([positive_logits[:, None], negative_logits], dim=1)
    return torch.logsumexp(logits, dim=1) - positive_logits


def _mean_over_negatives(losses: Tensor, negative_logits: Tensor) -> Tensor:
    num_negatives = torch.isfinite(negative_logits).sum(1).clamp_min(1)
    return losses.sum(1) / num_negatives


def select_loss(name: str, *, margin: float, negative_weight: float = 1.0) -> Loss:
    """Return the loss of that name.

    Args:
        name: of a setting `training.loss`.
        margin: of `pairwise_hinge` and `cosine_contrastive`, in units of the logit.
        negative_weight: of `cosine_contrastive` alone.
    """
    losses: dict[str, Loss] = {
        "pointwise": pointwise,
        "cosine_contrastive": partial(
            cosine_contrastive, margin=margin, negative_weight=negative_weight
        ),
        "pairwise_hinge": partial(pairwise_hinge, margin=margin),
        "pairwise_logistic": pairwise_logistic,
        "listwise": listwise,
    }
    return losses[name]
