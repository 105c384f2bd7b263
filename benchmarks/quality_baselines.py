"""What a two-tower has to beat on Gowalla: popularity, and ALS with a small grid."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

from quality_data import Split
from twotower.baselines import AlsSettings, als, popularity
from twotower.evaluation import Scorer, evaluate

__all__ = ["BASELINES", "Baseline", "measure_baseline"]


class Baseline(NamedTuple):
    """One opponent, and the settings to choose from; None for popularity, which has none."""

    name: str
    grid: tuple[AlsSettings | None, ...]


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
BASELINES: Final = (Baseline("popularity", (None,)), Baseline("ALS (implicit)", GRID))


def measure_baseline(split: Split, settings: AlsSettings | None) -> dict[str, Any]:
    """Return Recall@20 and NDCG@20 of one setting over the users that are asked about."""
    began = time.perf_counter()
    scorer = _fit(split, settings)
    seconds = round(time.perf_counter() - began, 1)
    means = evaluate(split.day.truth, scorer, ks=(20,)).means()
    found = {metric: means[metric] for metric in ("recall_at_20", "ndcg_at_20")}
    return {"epochs": settings.iterations if settings else 0, "seconds": seconds, **found}


def _fit(split: Split, settings: AlsSettings | None) -> Scorer:
    known = split.day.known
    if settings is None:
        return popularity(known._replace(items=known.history_items))
    return als(known, settings)
