"""The opponents: popularity lists, item-to-item co-clicks, and matrix factorisation.

Each is a function of what was known before a day, with settings, that returns a scorer for
`twotower.evaluation.evaluate`. A two-tower that does not beat them is not worth its trouble.
Legend: `m` clicks, `h` history pairs, `U` users, `I` items, `n` users asked about, `F` factors.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.popularity import DecayedCounts
from twotower.errors import MissingExtra
from twotower.evaluation import Scorer

__all__ = [
    "AlsFactors",
    "AlsPopularitySettings",
    "AlsSettings",
    "BaselineSettings",
    "Interactions",
    "ItemToItemSettings",
    "als",
    "als_popularity",
    "fit_als",
    "item_to_item",
    "popularity",
    "popularity_decayed",
    "popularity_previous_day",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


_NOBODY: Final = np.zeros(0, np.int64)


class Interactions(NamedTuple):
    """The positives before a day: clicks with their times, and a history without."""

    users: IntArray
    """`int64[m]`, positions."""
    items: IntArray
    """`int64[m]`, positions."""
    event_time_ms: IntArray
    """`int64[m]`"""
    day: IntArray
    """`int64[m]`, the number of the day that the import put the click in, ascending with time."""
    history_users: IntArray
    """`int64[h]`, positions."""
    history_items: IntArray
    """`int64[h]`, positions."""
    num_users: int
    num_items: int
    next_day: int
    """The day that is asked about; clicks of it or later must not be here."""
    cut_ms: int
    """When that day begins."""
    seen_users: IntArray = _NOBODY
    """`int64[s]`, positions: whom the history says to have been shown `seen_items`."""
    seen_items: IntArray = _NOBODY
    """`int64[s]`, positions; those that are history positives too are ignored."""

    def before(self, day: int, cut_ms: int) -> Interactions:
        """Return what was known before `day`, which begins at `cut_ms`."""
        kept = self.day < day
        return self._replace(
            users=self.users[kept],
            items=self.items[kept],
            event_time_ms=self.event_time_ms[kept],
            day=self.day[kept],
            next_day=day,
            cut_ms=cut_ms,
        )


class ItemToItemSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of `item_to_item`."""

    shrinkage: NotNegative = 10.0
    """Added to the divisor of every cosine: rare pairs count less."""


class AlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of `als`."""

    factors: Count = 32
    regularization: NotNegative = 1.0
    alpha: Positive = 40.0
    """Confidence of a click; see `fit_als`."""
    history_weight: NotNegative = 0.4
    """What a positive pair of the history counts beside a click's 1."""
    seen_weight: NotNegative = 0.3
    """What a pair counts that the history only says to have been shown: a weak positive."""
    iterations: Count = 8
    seed: int = 1
    num_threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0: all cores. The factors do not depend on it."""


class AlsPopularitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of `als_popularity`."""

    als: AlsSettings = AlsSettings()
    weight: Positive = 12.0
    """Multiplies the factors' score before the log popularity is added."""
    half_life_h: Positive = 24.0
    smoothing: Positive = 0.02
    """Clicks that every item is taken to have had."""
    history_smoothing: NotNegative = 0.06
    """Clicks that an item of mean popularity in the history is taken to have had on top."""


class BaselineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of all baselines."""

    decayed_half_life_h: Positive = 12.0
    item_to_item: ItemToItemSettings = ItemToItemSettings()
    als: AlsSettings = AlsSettings()
    als_popularity: AlsPopularitySettings = AlsPopularitySettings()


def popularity(known: Interactions) -> Scorer:
    """Rank items by their clicks so far; the history is left out."""
    return _same_for_all(np.bincount(known.items, minlength=known.num_items))


def popularity_previous_day(known: Interactions) -> Scorer:
    """Rank items by their clicks on the day before."""
    yesterday = known.items[known.day == known.next_day - 1]
    return _same_for_all(np.bincount(yesterday, minlength=known.num_items))


def popularity_decayed(known: Interactions, half_life_h: float = 12.0) -> Scorer:
    """Rank items by their clicks so far, each fading with its age; see `DecayedCounts`."""
    return _same_for_all(_decayed(known, half_life_h))


def item_to_item(known: Interactions, settings: ItemToItemSettings | None = None) -> Scorer:
    """Score an item by the sum of its cosines with the user's items, history included.

    The cosine of two items is that of their columns in the 0/1 matrix of users and items,
    c_ij / (sqrt(c_i c_j) + shrinkage), c_ij the users of both; an item says nothing of itself.

    Raises:
        MissingExtra: scipy is not installed.
    """
    chosen = settings or ItemToItemSettings()
    matrix = _matrix(known, history_weight=1.0, seen_weight=0.0)
    matrix.data[:] = 1
    similar = (matrix.T @ matrix).tocoo()
    root = np.sqrt(similar.diagonal())
    divisor = root[similar.row] * root[similar.col] + np.float32(chosen.shrinkage)
    similar.data = np.where(similar.row == similar.col, 0, similar.data / divisor)
    similar = similar.tocsr()
    return lambda users: (matrix[users] @ similar).toarray().astype(np.float32, copy=False)


class AlsFactors(NamedTuple):
    """`float32[U, F]` and `float32[I, F]`; their inner product is the score."""

    users: FloatArray
    items: FloatArray


def fit_als(known: Interactions, settings: AlsSettings | None = None) -> AlsFactors:
    """Return the factors of implicit-feedback matrix factorisation (Hu, Koren, Volinsky 2008).

    A pair counts `alpha` times its weight: 1 for a click, `history_weight` or `seen_weight` for the
    history, the sum where there are both. Repeatable with one seed, whatever the number of threads.

    Raises:
        MissingExtra: implicit or threadpoolctl is not installed.
    """
    chosen = settings or AlsSettings()
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingExtra("implicit", "baselines", "matrix factorisation") from error
    # implicit runs its own threads over BLAS calls; a threaded BLAS below them slows it down.
    with threadpool_limits(limits=1, user_api="blas"):
        model = AlternatingLeastSquares(
            factors=chosen.factors,
            regularization=chosen.regularization,
            alpha=chosen.alpha,
            iterations=chosen.iterations,
            num_threads=chosen.num_threads,
            random_state=chosen.seed,
        )
        model.fit(_matrix(known, chosen.history_weight, chosen.seen_weight), show_progress=False)
    return AlsFactors(np.asarray(model.user_factors), np.asarray(model.item_factors))


def als(
    known: Interactions, settings: AlsSettings | None = None, factors: AlsFactors | None = None
) -> Scorer:
    """Score by the factors of `fit_als`, fitted here unless handed over."""
    fitted = factors or fit_als(known, settings)
    return lambda users: fitted.users[users] @ fitted.items.T


def als_popularity(
    known: Interactions,
    settings: AlsPopularitySettings | None = None,
    factors: AlsFactors | None = None,
) -> Scorer:
    """Score by `weight` times the factors' score plus the log of the decayed popularity.

    The count in the log is smoothed by a constant and by the item's popularity in the history.
    """
    chosen = settings or AlsPopularitySettings()
    fitted = factors or fit_als(known, chosen.als)
    history = np.bincount(known.history_items, minlength=known.num_items) + 1
    prior = chosen.smoothing + chosen.history_smoothing * history / history.mean()
    log_popularity = np.log(_decayed(known, chosen.half_life_h) + prior).astype(np.float32)
    items = fitted.items.T * np.float32(chosen.weight)
    return lambda users: fitted.users[users] @ items + log_popularity


def _same_for_all(counts: npt.NDArray[Any]) -> Scorer:
    """Return the scorer of one list for everybody, equal counts by the lower position.

    Its scores are places counted from the end, all different, because selecting the best of
    thousands of equal scores for every user is ten times slower.
    """
    scores = np.empty(len(counts), np.float32)
    scores[np.argsort(-counts, kind="stable")] = np.arange(len(counts), 0, -1)
    return lambda users: np.tile(scores, (len(users), 1))


def _decayed(known: Interactions, half_life_h: float) -> npt.NDArray[np.float64]:
    counts = DecayedCounts(half_life_h, known.num_items)
    counts.advance(known.items, known.event_time_ms, known.cut_ms)
    return counts.counts


def _matrix(known: Interactions, history_weight: float, seen_weight: float) -> Any:
    """Return the sparse matrix `float32[U, I]` of weights; a pair counts once a source."""
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise MissingExtra("scipy", "baselines", "this baseline") from error
    shape = (known.num_users, known.num_items)

    def pairs(users: IntArray, items: IntArray) -> Any:
        counted = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
        counted.data[:] = 1
        return counted

    matrix = pairs(known.users, known.items)
    history = pairs(known.history_users, known.history_items)
    if history_weight:
        matrix = matrix + history * np.float32(history_weight)
    if seen_weight:
        seen = pairs(known.seen_users, known.seen_items)
        matrix = matrix + (seen - seen.multiply(history)) * np.float32(seen_weight)
    matrix.eliminate_zeros()
    return matrix
