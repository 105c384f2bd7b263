"""The stream in simulated time: at every moment what is served is asked, then it learns.

Progressive validation: a click is scored by the model as it is served at that moment, before
anything learns from it. This is the whole schedule, over examples in memory; `pipeline` runs the
same schedule over the real files of every step. Legend: `q` questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from twotower.data.example_log import IMPRESSION, JoinedExamples
from twotower.data.label_join.settings import JoinSettings
from twotower.data.popularity import DecayedCounts
from twotower.data.schema import BoolArray, IntArray
from twotower.progress import SILENT, Progress
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.generation import Generation
from twotower.replay.nights import ReplayedLog
from twotower.replay.served import ServedVectors
from twotower.replay.strategies import LivePopularity, Strategy
from twotower.replay.stream import LiveStream

__all__ = [
    "Learner",
    "LiveScores",
    "Moment",
    "moments",
    "popularity_before",
    "replay_live",
    "stream_examples",
]


_APPEND_MS: Final = 1000
"""What the join allows an event between its arrival and the moment it can be read."""


class Learner(Protocol):
    """The incremental update over one base generation."""

    def learn(self, examples: JoinedExamples) -> object:
        """Learn from the next examples of the stream, in order."""

    def take_delta_rows(self) -> DeltaRows:
        """Return the rows that changed since they were last taken."""


class LiveScores(NamedTuple):
    """How every scored click was predicted."""

    question: IntArray
    """`int64[q]`, places among the questions of the stream, ascending."""
    rank: IntArray
    """`int64[q]`, items before the clicked one, from 0."""
    freshness_s: npt.NDArray[np.float64]
    """Of every click that was learned from: simulated seconds until rows that know it serve."""
    deltas_published: int


class Moment(NamedTuple):
    """A point of the schedule, at which something new is served."""

    at_ms: int
    generation: int | None
    """Which generation goes live, None where the old one stays."""


def moments(stream: LiveStream, strategy: Strategy) -> list[Moment]:
    """Return when something is published: every interval, and at each activation."""
    step_ms = round(strategy.publish_every_s * 1000)
    at = dict.fromkeys(range(stream.start_ms, int(stream.ends_ms[-1]), step_ms))
    activations: dict[int, int] = {stream.start_ms: 0}
    if strategy.nights:
        for day, end_ms in enumerate(stream.ends_ms[:-1].tolist(), start=1):
            activations[end_ms + round(strategy.night_s * 1000)] = day
    return [Moment(ms, activations.get(ms)) for ms in sorted({*at, *activations})]


def stream_examples(log: ReplayedLog, stream: LiveStream) -> JoinedExamples:
    """Return the examples that the label join makes of the stream, without running it."""
    return JoinedExamples(
        offset=np.arange(len(stream.event_id), dtype=np.int64),
        event_key=stream.event_id,
        user_id=log.users.ids[stream.user],
        item_id=log.items.ids[stream.item],
        event_time_ms=stream.event_time_ms,
        kind=np.full(len(stream.event_id), IMPRESSION, np.uint8),
        is_positive=stream.is_positive,
        weight=np.ones(len(stream.event_id), np.float32),
        stage=np.zeros(len(stream.event_id), "S1"),
    )


def replay_live(
    log: ReplayedLog,
    stream: LiveStream,
    generations: Sequence[Generation],
    strategy: Strategy,
    make_learner: Callable[[Generation], Learner],
    *,
    join: JoinSettings | None = None,
    is_asked: BoolArray | None = None,
    progress: Progress = SILENT,
    make_served: Callable[[Generation, ReplayedLog], ServedVectors] = ServedVectors,
) -> LiveScores:
    """Score every click of the stream by what is served at its moment.

    Args:
        log: the import.
        stream: its live days.
        generations: the base, then the one that learned the first live day, and so on; a strategy
            without nights uses the first only.
        strategy: what happens within the day and at night.
        make_learner: starts an incremental update over a generation.
        join: how long the label join waits before it emits an example.
        is_asked: `bool[q]`, which questions are scored; all of those that can be if left out.
        progress: told of every click.
        make_served: lays what is learned over a generation; called before `make_learner`.
    """
    day = _LiveDay(log, stream, generations, strategy, make_learner, join or JoinSettings())
    day.make_served = make_served
    asked = (
        stream.questions.is_scored if is_asked is None else stream.questions.is_scored & is_asked
    )
    parts, ranks = [], []
    progress.begin("live days", int(asked.sum()))
    for moment, until_ms in _spans(moments(stream, strategy), int(stream.ends_ms[-1])):
        day.publish(moment)
        start, end = _between(stream, moment.at_ms, until_ms)
        part = start + np.flatnonzero(asked[start:end])
        parts.append(part)
        ranks.append(day.served.ranks(stream.questions, part))
        progress.advance(len(part))
    progress.end()
    fresh = np.concatenate([np.zeros(0), *day.freshness_s])
    return LiveScores(np.concatenate(parts), np.concatenate(ranks), fresh, day.deltas_published)


def _spans(schedule: list[Moment], end_ms: int) -> Iterator[tuple[Moment, int]]:
    ends = [moment.at_ms for moment in schedule[1:]]
    return zip(schedule, [*ends, end_ms], strict=True)


def _between(stream: LiveStream, start_ms: int, end_ms: int) -> tuple[int, int]:
    """Return which questions lie in `[start_ms, end_ms)`."""
    times = stream.questions.event_time_ms
    return int(np.searchsorted(times, start_ms)), int(np.searchsorted(times, end_ms))


class _LiveDay:
    """What is served and what learns, moved from moment to moment."""

    make_served: Callable[[Generation, ReplayedLog], ServedVectors]

    def __init__(
        self,
        log: ReplayedLog,
        stream: LiveStream,
        generations: Sequence[Generation],
        strategy: Strategy,
        make_learner: Callable[[Generation], Learner],
        join: JoinSettings,
    ) -> None:
        self._join = join
        self._log, self._stream, self._generations = log, stream, generations
        self._strategy = strategy
        self._make_learner = make_learner
        self._examples = stream_examples(log, stream)
        self._learner: Learner | None = None
        self._learned = 0
        self._counts = popularity_before(log, stream, strategy.popularity)
        self._counted = 0
        self.served: ServedVectors
        self.freshness_s: list[npt.NDArray[np.float64]] = []
        self.deltas_published = 0

    def publish(self, moment: Moment) -> None:
        """Serve a generation that goes live, what was learned by now, and today's popularity."""
        if moment.generation is not None:
            self._activate(moment.generation)
        if self._learner is not None:
            self._learn(moment.at_ms)
        if self._strategy.new_items:
            self._meet_items(moment.at_ms)
        self._refresh_popularity(moment.at_ms)

    def _activate(self, number: int) -> None:
        """Serve another base; increments start again from its cut."""
        generation = self._generations[number]
        self.served = self.make_served(generation, self._log)
        if self._strategy.increments:
            self._learner = self._make_learner(generation)
            cut_ms = self._stream.ends_ms[number - 1] if number else 0
            self._learned = int(np.searchsorted(self._stream.event_time_ms, cut_ms))

    def _learn(self, now_ms: int) -> None:
        assert self._learner is not None, "asked by publish"
        end = self._joined_by(now_ms)
        if end <= self._learned:
            return
        new = self._examples.take(slice(self._learned, end))
        self._learned = end
        self._learner.learn(new)
        self.served.apply(self._learner.take_delta_rows(), new_items=self._strategy.new_items)
        self.deltas_published += 1
        self.freshness_s.append((now_ms - new.event_time_ms[new.is_positive]) / 1000)

    def _joined_by(self, now_ms: int) -> int:
        """Return how many events the label join has made examples of: its rule, without its files.

        The watermark stays behind the newest event, and moves on with the clock where none comes;
        an example is emitted when it has passed the event by the window.
        """
        times, join = self._stream.event_time_ms, self._join
        arrived = int(np.searchsorted(times, now_ms))
        if arrived == 0:
            return 0
        newest = int(times[arrived - 1])
        idle_ms = max(0, now_ms - _APPEND_MS - newest - round(join.idle_after_s * 1000))
        watermark = newest - round(join.allowed_lateness_s * 1000) + idle_ms
        due = watermark - round(join.window_s * 1000)
        return min(arrived, int(np.searchsorted(times, due, side="right")))

    def _meet_items(self, now_ms: int) -> None:
        """Serve items that were shown before now and that neither base nor delta brought."""
        until = int(np.searchsorted(self._stream.event_time_ms, now_ms))
        items = np.unique(self._stream.item[:until])
        self.served.meet(items[~self.served.is_served[items]])

    def _refresh_popularity(self, now_ms: int) -> None:
        settings = self._strategy.popularity
        if settings is None:
            return
        asked = self._stream.questions
        until = int(np.searchsorted(asked.event_time_ms, now_ms))
        new = slice(self._counted, until)
        self._counted = until
        self._counts.advance(asked.item[new], asked.event_time_ms[new], now_ms)
        logs = self._counts.log_popularity(now_ms, settings.smoothing)
        self.served.popularity = np.float32(settings.weight * self.served.temperature) * logs


def popularity_before(
    log: ReplayedLog, stream: LiveStream, settings: LivePopularity | None
) -> DecayedCounts:
    """Return the counts of the day before the stream."""
    counts = DecayedCounts(settings.half_life_h if settings else 1.0, len(log.items))
    day = log.data.days[log.data.days.index(stream.days[0]) - 1]
    events = log.events(day)
    clicks = events.outcome
    times = np.minimum(events.event_time_ms[clicks], stream.start_ms - 1)
    counts.advance(log.items.positions(events.item_id[clicks]), times, stream.start_ms)
    return counts
