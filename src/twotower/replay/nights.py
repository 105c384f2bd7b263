"""A log through the whole loop in simulated time: each night trains, each day is predicted.

The day that is scored is always one that nothing has been trained on: the model and every baseline
know the days before it and nothing else. Users and items are numbered once for all models.
Legend: `n` users, `I` items.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.baselines import (
    BaselineSettings,
    Interactions,
    als,
    als_popularity,
    item_to_item,
    popularity,
    popularity_decayed,
    popularity_previous_day,
)
from twotower.config import Project
from twotower.data.days import DayEvents, ImportedData
from twotower.data.ids import IdMap, decode_ids
from twotower.data.user_state import Ragged, UserState, append_ragged
from twotower.errors import LineageError
from twotower.evaluation import (
    Evaluation,
    Scorer,
    UserDays,
    evaluate,
    measure,
    rank,
    segments,
    user_days,
)
from twotower.nightly import run_night, start_lineage
from twotower.progress import SILENT, Progress
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore

__all__ = [
    "BASELINES",
    "KS",
    "ReplayedDay",
    "ReplayedLog",
    "ScoredNight",
    "generation_scorer",
    "replay_nights",
    "score_baselines",
]

IntArray = npt.NDArray[np.int64]

KS = (20, 50, 200)
BASELINES = (
    "popularity",
    "popularity_previous_day",
    "popularity_decayed",
    "item_to_item",
    "als",
    "als_popularity",
)


class ReplayedDay(NamedTuple):
    """One day to predict, and everything that may be known when it begins."""

    day: str
    truth: UserDays
    known: Interactions
    num_known: IntArray
    """`[n]`, positives of each of `truth.users` before the day, the history included."""
    is_cold: npt.NDArray[np.bool_]
    """`[I]`, items without a positive before the day, the history included."""


class ReplayedLog:
    """The imported days, one after the other, over one numbering of users and items."""

    def __init__(self, data: ImportedData) -> None:
        self.data = data
        self.users = IdMap(data.user_id_kind)
        self.items = IdMap(data.item_id_kind)
        tables = ((self.users, data.users(), "user_id"), (self.items, data.items(), "item_id"))
        for ids, frame, column in tables:
            if frame is not None:
                ids.add(frame[column].to_list())
        self._events = {day: data.day(day) for day in data.days}
        for events in self._events.values():
            self.users.add(events.user_id)
            self.items.add(events.item_id)
        self._history = data.history()
        if self._history is not None:
            self.users.add(self._history.user_id)
            self.items.add(np.concatenate([self._history.positives, self._history.seen]))

    def days(self, first: str, last: str) -> Iterator[ReplayedDay]:
        """Yield the days from `first` to `last`, each with what was known before it."""
        seen = self.history_seen
        clicks = self._all_clicks
        for number, (day, events) in enumerate(self._events.items()):
            users, items = self._positions(events)
            if first <= day <= last:
                yield self._replayed(day, users, items, events, seen, clicks, number)
            shown = UserState(Ragged.empty(0), seen).advance(
                users, items, events.outcome, num_users=len(self.users), recent_limit=1
            )
            seen = shown.seen

    def _replayed(
        self,
        day: str,
        users: IntArray,
        items: IntArray,
        events: DayEvents,
        seen: Ragged,
        clicks: Interactions,
        number: int,
    ) -> ReplayedDay:
        truth = user_days(users, items, events.outcome, seen)
        known = clicks.before(number, self.data.day_entry(day).start_ms)
        known_users = np.concatenate([known.users, known.history_users])
        known_items = np.concatenate([known.items, known.history_items])
        return ReplayedDay(
            day=day,
            truth=truth,
            known=known,
            num_known=np.bincount(known_users, minlength=len(self.users))[truth.users],
            is_cold=np.bincount(known_items, minlength=len(self.items)) == 0,
        )

    def _positions(self, events: DayEvents) -> tuple[IntArray, IntArray]:
        return self.users.positions(events.user_id), self.items.positions(events.item_id)

    def events(self, day: str) -> DayEvents:
        """Return the impressions of a day, sorted by time and then event ID."""
        return self._events[day]

    @cached_property
    def history_positives(self) -> Ragged:
        """The positives of the imported history, by user position, oldest first."""
        users, items = self._history_pairs()
        nothing = Ragged.empty(len(self.users))
        return append_ragged(nothing, users, items, num_lists=len(self.users), limit=0)

    @cached_property
    def history_seen(self) -> Ragged:
        """Everything that the imported history says to have been shown, by user position."""
        nothing = Ragged.empty(len(self.users))
        if self._history is None:
            return nothing
        users = self.users.positions(self._history.user_id)
        owners = np.repeat(users, np.diff(self._history.seen_offsets))
        items = self.items.positions(self._history.seen)
        return append_ragged(nothing, owners, items, num_lists=len(self.users), limit=0)

    @cached_property
    def _all_clicks(self) -> Interactions:
        events = list(self._events.values())
        clicked = [day.outcome for day in events]
        positions = [self._positions(day) for day in events]
        history_users, history_items = self._history_pairs()
        last = self.data.day_entry(self.data.days[-1])
        return Interactions(
            users=_pick([users for users, _ in positions], clicked),
            items=_pick([items for _, items in positions], clicked),
            event_time_ms=_pick([day.event_time_ms for day in events], clicked),
            day=_pick([np.full(len(day), n) for n, day in enumerate(events)], clicked),
            history_users=history_users,
            history_items=history_items,
            seen_users=self.history_seen.owners(),
            seen_items=self.history_seen.values,
            num_users=len(self.users),
            num_items=len(self.items),
            next_day=len(events),
            cut_ms=last.end_ms,
        )

    def _history_pairs(self) -> tuple[IntArray, IntArray]:
        if self._history is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        users = self.users.positions(self._history.user_id)
        owners = np.repeat(users, np.diff(self._history.positive_offsets))
        return owners, self.items.positions(self._history.positives)


def _pick(columns: list[IntArray], masks: list[npt.NDArray[np.bool_]]) -> IntArray:
    return np.concatenate([column[mask] for column, mask in zip(columns, masks, strict=True)])


def generation_scorer(generation: Generation, log: ReplayedLog) -> Scorer:
    """Return a scorer that ranks as the generation would: its own files, its own towers.

    Items that the generation does not know score minus infinity: it cannot return them.
    """
    encoder = Encoder.of(generation)
    corpus = np.asarray(generation.array("corpus.npy"))
    item_vectors = np.asarray(generation.array("item_vectors.npy"))
    places = log.items.positions(encoder.items.decode(corpus))
    item_vectors, places = item_vectors[places >= 0], places[places >= 0]
    log_user_ids = log.users.ids

    def score(users: IntArray) -> npt.NDArray[np.float32]:
        scores = np.full((len(users), len(log.items)), -np.inf, np.float32)
        vectors = encoder.user_vectors(encoder.users.positions(decode_ids(log_user_ids[users])))
        scores[:, places] = vectors @ item_vectors.T
        return scores

    return score


class ScoredNight(NamedTuple):
    """A generation and how it predicted the day after its cut."""

    day: ReplayedDay
    generation: Generation
    evaluation: Evaluation
    segments: dict[str, Evaluation]
    """The same by kind of user, and for items nobody had clicked; see `evaluation.segments`."""


def replay_nights(
    project: Project, log: ReplayedLog, first: str, last: str, *, progress: Progress = SILENT
) -> Iterator[ScoredNight]:
    """Train night after night and score every day from `first` to `last` before it is trained.

    Each generation is published and activated as in production, and scored from its own files.

    Args:
        project: whose import is replayed and whose lineage grows.
        log: the same import.
        first: first day to score; the nights before it are trained too.
        last: last day to score; a day on which nobody clicked anything new has no figures.
        progress: told of every step.

    Raises:
        LineageError: the lineage has trained a day to score already.
    """
    store = ModelStore(project.data_path)
    if store.live() is None and first == log.data.days[0]:
        start_lineage(project, progress=progress)
    for day in log.days(first, last):
        _train_before(project, log.data, day.day, progress)
        if len(day.truth.users) == 0:
            continue
        yield _score_night(day, store.open(), log)


def _score_night(day: ReplayedDay, generation: Generation, log: ReplayedLog) -> ScoredNight:
    ranked, num_items = rank(day.truth, generation_scorer(generation, log), max(KS))
    return ScoredNight(
        day,
        generation,
        measure(ranked, day.truth, num_items, KS),
        segments(ranked, day.truth, day.num_known, day.is_cold, KS),
    )


def _train_before(project: Project, data: ImportedData, day: str, progress: Progress) -> None:
    """Run every night, one by one, that lies between the live generation and `day`.

    Raises:
        LineageError: the lineage has trained `day` already, so that scoring it would mean nothing.
    """
    store = ModelStore(project.data_path)
    is_live = store.live() is not None
    live = (store.open(verify=False).manifest.window.through_day if is_live else None) or ""
    if live >= day:
        raise LineageError(
            f"expected a lineage that has not trained {day}, a day to score, found one that is "
            f"live through {live}; nothing was trained: replay into an empty data_dir"
        )
    for night in data.days:
        if live < night < day:
            run_night(project, night, progress=progress)


def score_baselines(day: ReplayedDay, settings: BaselineSettings) -> dict[str, Evaluation]:
    """Fit every baseline on what is known before the day and score it on the day."""
    known = day.known
    scorers: dict[str, Scorer] = {
        "popularity": popularity(known),
        "popularity_previous_day": popularity_previous_day(known),
        "popularity_decayed": popularity_decayed(known, settings.decayed_half_life_h),
        "item_to_item": item_to_item(known, settings.item_to_item),
        "als": als(known, settings.als),
        "als_popularity": als_popularity(known, settings.als_popularity),
    }
    return {name: evaluate(day.truth, scorer) for name, scorer in scorers.items()}
