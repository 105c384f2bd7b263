"""Which items a user's positives are held against by name: eliminated, mined, or shown in vain.

What a user clicked is never on a list. The positives known up to the window's cut are those of the
window and those before it, and everything a user saw before it holds the latter: user state keeps
no complete list of old clicks, but it keeps everything seen. An item that was seen will not be
served again, so nothing is lost by leaving it out. Legend: `n` events, `N` users.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.checkpoint import Checkpoint
from twotower.data.days import ImportedData
from twotower.data.schema import DayEvents, IntArray
from twotower.data.user_state import Ragged, append_ragged, take_ragged
from twotower.errors import ConfigError, DataError
from twotower.training.batches import NegativeLists
from twotower.training.held_out import Division
from twotower.training.settings import HardNegativeSettings, NegativeSettings
from twotower.training.window import WindowEvents

__all__ = ["Listed", "Miner", "NegativeSources", "list_negatives"]

Miner = Callable[[IntArray], Ragged]
"""User positions `int64[n]`, all known to the parent -> `n` lists of item positions."""

_LOGGER: Final = logging.getLogger("twotower")
_Pairs = tuple[IntArray, IntArray]


class NegativeSources(NamedTuple):
    """Where a full update finds negatives; users and items are positions of the new state."""

    data: ImportedData
    window: WindowEvents
    users: IntArray
    """`[n]`, of the window's impressions."""
    items: IntArray
    """`[n]`"""
    miner: Miner | None


class Listed(NamedTuple):
    """The lists of every source that is switched on, and how long they are."""

    names: tuple[str, ...]
    """`hard` and `shown`, those of them that are on."""
    lists: tuple[NegativeLists, ...]
    known: tuple[int, ...]
    """Pairs of each source that were left out, because the user clicked or saw the item."""

    def counts(self, drawn: Sequence[int]) -> dict[str, int]:
        """Return the counts for the manifest; `drawn` is what went through a step, by source."""
        counts = {}
        for name, lists, known, steps in zip(*self, drawn, strict=True):
            counts[f"{name}_candidates"] = len(lists.by_user.values)
            counts[f"{name}_known"] = known
            counts[f"{name}_drawn"] = steps
        return counts


def list_negatives(
    state: Checkpoint, sources: NegativeSources, division: Division, settings: NegativeSettings
) -> Listed:
    """Return the lists of every source that is switched on.

    A user whose positives are held out tonight has none: leaving a held-out positive out of a list
    would tell of it, and leaving it in would train against it.

    Args:
        state: as it was at the parent's cut, with the window's IDs made known.
        sources: the window.
        division: which positives are trained and which are held out.
        settings: which sources, how many, how strong.

    Raises:
        DataError: no candidate of the window was eliminated at the stages that count.
        ConfigError: mining was asked for without a generation to mine.
    """
    withheld = state.users.positions(division.withheld.user_id)
    trained = np.setdiff1d(division.examples.user, withheld)
    found: dict[str, tuple[NegativeLists, int]] = {}
    hard, shown = settings.hard, settings.shown
    if hard.source != "none" and hard.weight and hard.share:
        pairs = _hard(state, sources, trained, hard)
        by_user, known = _without_known(state, sources, trained, pairs, hard.source)
        found["hard"] = NegativeLists(by_user, hard.share, hard.weight), known
    if shown.weight and shown.share:
        pairs = sources.users, sources.items
        by_user, known = _without_known(state, sources, trained, pairs, "shown")
        found["shown"] = NegativeLists(by_user, shown.share, shown.weight), known
    lists = tuple(lists for lists, _ in found.values())
    return Listed(tuple(found), lists, tuple(known for _, known in found.values()))


def _hard(
    state: Checkpoint, sources: NegativeSources, users: IntArray, hard: HardNegativeSettings
) -> _Pairs:
    if hard.source == "logged":
        return _logged(state, sources, hard.stages)
    return _mined(state, sources.miner, users)


def _logged(state: Checkpoint, sources: NegativeSources, stages: tuple[str, ...]) -> _Pairs:
    """Return the eliminated candidates whose user and item are known; others teach nothing."""
    days = [sources.data.eliminated(day) for day in sources.window.days]
    logged = [day for day in days if day is not None]
    counted = [_at_stages(day, stages) for day in logged]
    if not any(is_counted.any() for is_counted in counted):
        raise DataError(_nothing_logged(sources.window, logged, stages))
    pairs = [
        (state.users.positions(day.user_id[kept]), state.items.positions(day.item_id[kept]))
        for day, kept in zip(logged, counted, strict=True)
    ]
    users, items = (np.concatenate(side) for side in zip(*pairs, strict=True))
    is_known = (users >= 0) & (items >= 0)
    return users[is_known], items[is_known]


def _at_stages(day: DayEvents, stages: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    assert day.stage is not None, "eliminated candidates have a stage"
    return np.isin(day.stage, stages) if stages else np.ones(len(day), np.bool_)


def _nothing_logged(window: WindowEvents, logged: list[DayEvents], stages: tuple[str, ...]) -> str:
    found = sorted({str(name) for day in logged if day.stage is not None for name in day.stage})
    return (
        f"expected candidates that were eliminated at {' or '.join(stages) or 'any stage'} in "
        f"{window.days[0]} to {window.days[-1]}, found {', '.join(found[:10]) or 'none at all'}; "
        "nothing was trained: correct $.training.negatives.hard.stages or $.events.stage, or set "
        'source = "mined"'
    )


def _mined(state: Checkpoint, miner: Miner | None, users: IntArray) -> _Pairs:
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if not state.meta.trained.rows:
        _LOGGER.info("hard negatives source='mined' candidates=0 reason='untrained parent'")
        return nothing
    if miner is None:
        raise ConfigError(
            "expected the parent's generation, to mine hard negatives from, found none; nothing "
            'was trained: publish the parent, or set $.training.negatives.hard.source = "none"'
        )
    num_known = len(state.user_state.seen.offsets) - 1
    known = users[users < num_known]
    lists = miner(known)
    return known[lists.owners()], lists.values


def _without_known(
    state: Checkpoint, sources: NegativeSources, trained: IntArray, found: _Pairs, source: str
) -> tuple[Ragged, int]:
    """Return the pairs of trained users by user, less what they clicked or saw before; how many."""
    width = len(state.items)
    of_trained = np.isin(found[0], trained)
    pairs = np.unique(found[0][of_trained] * width + found[1][of_trained])
    positive = sources.window.events.outcome
    clicked = sources.users[positive] * width + sources.items[positive]
    kept = pairs[~np.isin(pairs, np.concatenate([clicked, _seen(state, trained, width)]))]
    _LOGGER.info(
        "hard negatives source=%r candidates=%d clicked_or_seen=%d",
        source,
        len(kept),
        len(pairs) - len(kept),
    )
    kept = np.random.default_rng(state.meta.training.seed).permutation(kept)
    num_users = len(state.users)
    by_user = append_ragged(
        Ragged.empty(num_users), kept // width, kept % width, num_lists=num_users, limit=0
    )
    return by_user, len(pairs) - len(kept)


def _seen(state: Checkpoint, users: IntArray, width: int) -> IntArray:
    """Return what each user had seen at the parent's cut, his clicks among it, as pairs."""
    seen = state.user_state.seen
    known = users[users < len(seen.offsets) - 1]
    lists = take_ragged(seen, seen.offsets[known], seen.offsets[known + 1])
    return known[lists.owners()] * width + lists.values
