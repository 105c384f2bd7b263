"""Which engine a generation gets: by name, or by measuring those that are installed.

On corpora of one size graphs and inverted lists change places: a graph may never reach 0.95 recall
where the vectors leave gaps, and lists probe many where there are none. So with "auto" each engine
is built, tuned on real user vectors to the recall target, and the quickest that reaches it is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
import numpy as np

from twotower.errors import ConfigError, MissingExtra
from twotower.index.exact import ExactIndex
from twotower.index.faiss import Flat, Hnsw, Ivf, IvfFlat, IvfPq
from twotower.index.frozen import FrozenIndex
from twotower.index.hnswlib import Hnswlib
from twotower.index.interface import FloatArray, IntArray, VectorIndex
from twotower.index.milvus import Milvus
from twotower.index.native import NativeEngine
from twotower.index.scann import Scann
from twotower.index.settings import IndexSettings
from twotower.index.tuning import Point, tune, tune_filters

__all__ = [
    "ENGINES",
    "NATIVE",
    "Choice",
    "ChosenIndex",
    "Items",
    "Trial",
    "check_engine",
    "choose_index",
    "one_side",
]

NATIVE: Final[Mapping[str, NativeEngine]] = {
    engine.name: engine
    for engine in (Flat(), Ivf(), IvfFlat(), IvfPq(), Hnsw(), Hnswlib(), Milvus(), Scann())
}
ENGINES: Final = ("exact", *NATIVE)
_LOG: Final = logging.getLogger(__name__)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one engine."""

    engine: str
    build_s: float = 0.0
    reached: bool = False
    """Whether some effort found the target's share of what an exact search finds."""
    curve: tuple[Point, ...] = ()
    """Every effort that was measured, ascending; the last one was set."""
    filter_factor: float = 1.0
    """How many times that effort a search with conditions makes."""
    filtered_recall: float = 1.0
    """What it then found where half of the items were allowed."""
    passed_over: str = ""
    """Why it was not taken; empty for the chosen one."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """How a generation came to its engine: kept beside its index."""

    format_version: int = 1
    asked_for: str
    chosen: str
    k: int
    ann_recall_target: float
    num_queries: int
    trials: tuple[Trial, ...] = ()


class ChosenIndex(NamedTuple):
    """An index and how it was come by."""

    built: VectorIndex
    choice: Choice


class Items(NamedTuple):
    """What an index is built of, and what it is tuned with."""

    ids: IntArray
    vectors: FloatArray
    """`float32[N, D]`."""
    queries: FloatArray | None = None
    """Real user vectors `float32[n, D]`, about 500; None leaves an index as it is built."""
    seed: int = 0
    generation: str = ""
    """For a server's collection, which is named after it."""


class _Tried(NamedTuple):
    built: VectorIndex
    trial: Trial


def choose_index(items: Items, settings: IndexSettings, k: int) -> ChosenIndex:
    """Return the index that `settings.engine` asks for, tuned.

    "auto" is exact up to `exact_max_items`; above, the quickest of `auto_engines` that reaches the
    target, and exact again where none does. An engine that was named is taken in any case: a
    gate judges its recall.

    Raises:
        ConfigError: there is no such engine.
        DataError: labels or vectors are refused.
        MissingExtra: the package of the engine that was named is not installed.
        NotReady: a server does not answer.
    """
    check_engine(settings.engine)
    index, trials = _by_measurement(items, settings, k) if _is_open(items, settings) else (None, [])
    if index is None:
        named = "exact" if settings.engine == "auto" else settings.engine
        index, trial = _try(named, items, settings, k)
        trials = [*trials, trial]
    chosen = next(trial.engine for trial in trials if not trial.passed_over)
    for trial in trials:
        outcome = trial.passed_over or "chosen"
        _LOG.info("index_tried engine=%s outcome=%r", trial.engine, outcome)
    num_queries = 0 if items.queries is None else len(items.queries)
    choice = Choice(
        asked_for=settings.engine,
        chosen=chosen,
        k=k,
        ann_recall_target=settings.ann_recall_target,
        num_queries=num_queries,
        trials=tuple(trials),
    )
    return ChosenIndex(index, choice)


def check_engine(name: str) -> None:
    """Refuse a name that no engine has.

    Raises:
        ConfigError: there is no such engine.
    """
    if name not in ("auto", *ENGINES):
        raise ConfigError(
            f"unknown index engine {name!r}; known: auto, {', '.join(sorted(ENGINES))}; "
            "nothing was built"
        )


def _is_open(items: Items, settings: IndexSettings) -> bool:
    return settings.engine == "auto" and len(items.ids) > settings.exact_max_items


def _by_measurement(
    items: Items, settings: IndexSettings, k: int
) -> tuple[VectorIndex | None, list[Trial]]:
    """Return the quickest engine that reaches the target, if any, and all that was tried.

    At most two indexes are in memory at once.
    """
    best: _Tried | None = None
    trials: list[Trial] = []
    for name in settings.auto_engines:
        try:
            tried = _try(name, items, settings, k)
        except MissingExtra as error:
            trials.append(Trial(engine=name, passed_over=str(error)))
            continue
        if not tried.trial.reached:
            why = f"its recall ends at {tried.trial.curve[-1].ann_recall:.4f}"
            trials.append(_passed_over(tried.trial, why))
        elif best is None or _p50_us(tried) < _p50_us(best):
            trials += [_slower(best.trial, name)] if best else []
            best = tried
        else:
            trials.append(_slower(tried.trial, best.trial.engine))
    if best is None:
        return None, trials
    return best.built, [*trials, best.trial]


def _try(name: str, items: Items, settings: IndexSettings, k: int) -> _Tried:
    began = time.perf_counter()
    if name == "exact":
        exact = ExactIndex.build(items.ids, items.vectors)
        return _Tried(exact, Trial(engine=name, build_s=_since(began), reached=True))
    native = Milvus(settings.milvus, items.generation) if name == "milvus" else NATIVE[name]
    index = FrozenIndex.build(native, items.ids, items.vectors, items.seed)
    build_s = _since(began)
    if items.queries is None or not len(items.queries):
        return _Tried(index, Trial(engine=name, build_s=build_s))
    tuning = tune(index, items.queries, k, settings.ann_recall_target)
    target = settings.filtered_recall_target
    filtered = tune_filters(index, items.queries, k, target, one_side(items))
    trial = Trial(
        engine=name,
        build_s=build_s,
        reached=tuning.reached,
        curve=tuning.measured,
        filter_factor=index.filter_factor,
        filtered_recall=filtered,
    )
    return _Tried(index, trial)


def one_side(items: Items) -> IntArray:
    """Return the labels of half of the items, which lie on one side of a random plane.

    What items have in common lies together in the space, so that some users are far from all that
    their condition allows: harder to find than a half at random.
    """
    size = items.vectors.shape[1]
    across = np.random.default_rng(items.seed).standard_normal(size, np.float32)
    side = items.vectors @ across
    found: IntArray = items.ids[side >= np.median(side)]
    return found


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)


def _p50_us(tried: _Tried) -> float:
    return tried.trial.curve[-1].p50_us


def _slower(trial: Trial, than: str) -> Trial:
    p50_us = trial.curve[-1].p50_us
    return _passed_over(trial, f"slower than {than}: {p50_us:.0f} us at the target")


def _passed_over(trial: Trial, why: str) -> Trial:
    return msgspec.structs.replace(trial, passed_over=why)
