"""What a two-tower has to beat on Gowalla: popularity, and ALS and BPR, each with a small grid."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import scipy.sparse as sp

from quality_data import Split
from twotower.baselines import AlsSettings, Interactions, als, popularity
from twotower.evaluation import Scorer, evaluate

__all__ = ["BASELINES", "Baseline", "measure_baseline"]


class BprSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of matrix factorisation by BPR (Rendle et al. 2009): one uniform negative a positive."""

    learning_rate: float
    regularization: float
    factors: int = 64
    iterations: int = 300
    seed: int = 1


class Baseline(NamedTuple):
    """One opponent, and the settings to choose from; None for popularity, which has none."""

    name: str
    grid: tuple[AlsSettings | BprSettings | None, ...]


def _als(alpha: float, regularization: float) -> AlsSettings:
    return AlsSettings(
        factors=64,
        alpha=alpha,
        regularization=regularization,
        history_weight=1.0,
        seen_weight=0.0,
        iterations=15,
        num_threads=1,
    )


GRID: Final = tuple(
    _als(alpha, regularization) for alpha in (10.0, 40.0, 160.0) for regularization in (10.0, 100.0)
)
BPR_GRID: Final = tuple(
    BprSettings(learning_rate=rate, regularization=regularization)
    for rate in (0.01, 0.03, 0.1)
    for regularization in (0.0001, 0.001, 0.01)
)
BASELINES: Final = (
    Baseline("popularity", (None,)),
    Baseline("ALS (implicit)", GRID),
    Baseline("BPR (implicit)", BPR_GRID),
)


def measure_baseline(split: Split, settings: AlsSettings | BprSettings | None) -> dict[str, Any]:
    """Return Recall@20 and NDCG@20 of one setting over the users that are asked about."""
    began = time.perf_counter()
    scorer = _fit(split, settings)
    seconds = round(time.perf_counter() - began, 1)
    means = evaluate(split.day.truth, scorer, ks=(20,)).means()
    found = {metric: means[metric] for metric in ("recall_at_20", "ndcg_at_20")}
    return {"epochs": settings.iterations if settings else 0, "seconds": seconds, **found}


def _fit(split: Split, settings: AlsSettings | BprSettings | None) -> Scorer:
    known = split.day.known
    if settings is None:
        return popularity(known._replace(items=known.history_items))
    if isinstance(settings, BprSettings):
        return _bpr(known, settings)
    return als(known, settings)


def _bpr(known: Interactions, settings: BprSettings) -> Scorer:
    """Score by the factors that `implicit` fits, its item biases among them."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking
    from threadpoolctl import threadpool_limits

    ones = np.ones(len(known.history_users), np.float32)
    places = (known.history_users, known.history_items)
    pairs = sp.csr_matrix((ones, places), shape=(known.num_users, known.num_items))
    with threadpool_limits(limits=1, user_api="blas"):
        model = BayesianPersonalizedRanking(
            factors=settings.factors,
            learning_rate=settings.learning_rate,
            regularization=settings.regularization,
            iterations=settings.iterations,
            num_threads=1,
            random_state=settings.seed,
        )
        model.fit(pairs, show_progress=False)
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
    return lambda asked: users[asked] @ items.T
