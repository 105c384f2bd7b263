"""The stream through the real files of every step, in simulated time.

Events are stored in an event log, the label join makes TFRecord shards of them, increments learn
from the shards, deltas are written and read back. Clicks are scored in batches by what is served,
and a share of them is put to a retriever that applied the same deltas and follows the log: both
must agree. The schedule is that of `live`: what `replay_live` does in memory comes out alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.config import Project
from twotower.data.event_log import EventLog, open_event_log
from twotower.data.events import Event, EventColumns, IdKinds
from twotower.data.example_log import ExampleLog
from twotower.data.label_join.joiner import join_available
from twotower.data.schema import BoolArray, IntArray
from twotower.errors import NotReady
from twotower.increments import begin_update
from twotower.nightly import run_night
from twotower.progress import SILENT, Progress
from twotower.publishing.delta import Delta, DeltaSpan, read_deltas
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.replay.comparison import LIVE_KS
from twotower.replay.live import LiveScores, Moment, moments
from twotower.replay.nights import ReplayedLog
from twotower.replay.served import ServedVectors
from twotower.replay.strategies import Strategy
from twotower.replay.stream import LiveStream
from twotower.serving.retriever import Retriever

if TYPE_CHECKING:
    from twotower.serving.user_state import UserEvents
    from twotower.training.incremental_update import IncrementalUpdate

__all__ = ["Played", "replay_pipeline"]

_ALL: Final = 1 << 31
_PLACES: Final = max(LIVE_KS)


class Played(NamedTuple):
    """What a replay through the files came to."""

    scores: dict[str, LiveScores]
    answers_checked: int
    """Clicks that a retriever was asked about too, over all strategies."""
    answers_differing: int
    """Of these, where the clicked item stood more than one place from where the batch had it."""


class _Line:
    """One strategy: what it serves and what it learns with."""

    def __init__(
        self, project: Project, folder: Path, strategy: Strategy, schedule: list[Moment]
    ) -> None:
        folder.mkdir(parents=True)
        self._project, self._folder, self.strategy = project, folder, strategy
        self.schedule: Mapping[int, Moment] = {moment.at_ms: moment for moment in schedule}
        self.retriever: Retriever
        self.served: ServedVectors
        self.state: UserEvents
        self.base: Generation
        self.update: IncrementalUpdate | None = None
        self.last: Delta | None = None
        self.ranks: list[IntArray] = []
        self.freshness_s: list[npt.NDArray[np.float64]] = []
        self.deltas_published = 0

    def activate(self, generation: Generation, log: ReplayedLog, first_offset: int) -> None:
        """Serve another base; increments start again behind its cut."""
        self.base, self.last = generation, None
        self.retriever = Retriever(generation)
        self.served = ServedVectors(generation, log)
        self.state = self.retriever.new_user_state(
            positive_outcomes=self._project.join.positive_outcomes
        )
        if self.strategy.increments:
            self.update = begin_update(self._project, generation, first_offset=first_offset)

    def publish(self, examples: ExampleLog, now_ms: int) -> None:
        """Learn what was joined since, write a delta, and answer from it."""
        update = self.update
        if update is None or update.offset >= examples.end:
            return
        first = update.offset
        new = examples.read(first, _ALL)
        update.learn(new)
        rows = update.take_delta_rows()
        span = DeltaSpan(
            first_offset=first,
            through_offset=update.offset,
            newest_event_time_ms=update.newest_event_time_ms,
        )
        write_delta(self._folder, self.base, rows, span, now_ms=now_ms)
        deltas = [*read_deltas(self._folder, self.base, after=self.last)]
        self.retriever = self.retriever.with_deltas(deltas)
        for delta in deltas:
            self.served.apply(delta.rows, new_items=True)
        self.last = deltas[-1]
        self.deltas_published += 1
        self.freshness_s.append((now_ms - new.event_time_ms[new.is_positive]) / 1000)


def replay_pipeline(
    project: Project,
    log: ReplayedLog,
    stream: LiveStream,
    strategies: Mapping[str, Strategy],
    *,
    is_asked: BoolArray | None = None,
    check_every: int = 20,
    progress: Progress = SILENT,
) -> Played:
    """Score every click of the stream by what each strategy serves at its moment.

    All strategies share the event log, the label join and the nights; each has its deltas.

    Args:
        project: staged for this replay; its data folder is written to. See `stage_project`.
        log: the whole import.
        stream: its live days.
        strategies: by name.
        is_asked: `bool[q]`, which questions are scored; all of those that can be if left out.
        check_every: of so many clicks one is put to the retriever too, whose answers have 50
            places.
        progress: told of every click.

    Raises:
        NotReady: a night is due before the label join has cut its day.
        GateRefused: a night did not pass a gate, or a loss exploded.
    """
    asked = stream.questions.is_scored
    run = _Run(project, log, stream, strategies, asked if is_asked is None else asked & is_asked)
    run.check_every = check_every
    with run.events:
        run.play(progress)
    part = np.flatnonzero(run.asked)
    scores = {
        name: LiveScores(
            part,
            np.concatenate(line.ranks),
            np.concatenate([np.zeros(0), *line.freshness_s]),
            line.deltas_published,
        )
        for name, line in run.lines.items()
    }
    return Played(scores, run.answers_checked, run.answers_differing)


class _Run:
    """What the strategies of a replay share, moved from moment to moment."""

    check_every = 1
    answers_checked = 0
    answers_differing = 0

    def __init__(
        self,
        project: Project,
        log: ReplayedLog,
        stream: LiveStream,
        strategies: Mapping[str, Strategy],
        asked: BoolArray,
    ) -> None:
        self._project, self._log, self._stream, self.asked = project, log, stream, asked
        kinds = IdKinds(log.data.user_id_kind, log.data.item_id_kind)
        self.events: EventLog = open_event_log(project.data_path, project.event_log, kinds)
        deltas = project.data_path / "strategies"
        self.lines = {
            name: _Line(project, deltas / name, strategy, moments(stream, strategy))
            for name, strategy in strategies.items()
        }
        self._store = ModelStore(project.data_path)
        self._generations = [self._store.open()]
        self._given = 0
        """Events of the stream that are in the log."""

    def play(self, progress: Progress) -> None:
        """Let the days happen."""
        schedules = [line.schedule for line in self.lines.values()]
        every = sorted({at_ms for schedule in schedules for at_ms in schedule})
        ends = [*every[1:], int(self._stream.ends_ms[-1])]
        progress.begin("live days", int(self.asked.sum()) * len(self.lines), "clicks")
        for now_ms, until_ms in zip(every, ends, strict=True):
            self._move(now_ms)
            offset = self.events.end()
            questions = self._store_until(until_ms)
            new = self.events.read(offset, _ALL) if self.events.end() > offset else None
            for line in self.lines.values():
                ranks = line.served.ranks(self._stream.questions, questions)
                line.ranks.append(ranks)
                if new is not None:
                    self._check(line, questions, ranks, new)
            progress.advance(len(questions) * len(self.lines))
        progress.end()

    def _move(self, now_ms: int) -> None:
        """Join what the log holds, and let every strategy publish that is due."""
        project = self._project
        join_available(project.data_path, self.events, project.join, project.time_zone, now_ms)
        examples = ExampleLog.open(project.data_path) if self._given else None
        for line in self.lines.values():
            moment = line.schedule.get(now_ms)
            if moment is None:
                continue
            if moment.generation is not None:
                self._activate(line, moment.generation, examples)
            if examples is not None:
                line.publish(examples, now_ms)

    def _activate(self, line: _Line, number: int, examples: ExampleLog | None) -> None:
        """Make a generation live for a strategy; train its night where none has yet."""
        first_offset = 0
        if number:
            day = self._stream.days[number - 1]
            if examples is None or day not in examples.cuts:
                raise NotReady(
                    f"expected the label join to have cut {day} when its night is due, found "
                    f"{sorted(examples.cuts) if examples else 'nothing joined'}; nothing was "
                    "trained: give the night more time than join.window_s + allowed_lateness_s"
                )
            first_offset = examples.cuts[day]
            if number == len(self._generations):
                run_night(self._project, day)
                self._generations.append(self._store.open())
        line.activate(self._generations[number], self._log, first_offset)
        if self._given:
            line.state = line.state.extend(self.events.read(0, _ALL))

    def _store_until(self, until_ms: int) -> IntArray:
        """Store the events before a moment; return which questions are among them and asked."""
        stream, first = self._stream, self._given
        end = int(np.searchsorted(stream.event_time_ms, until_ms))
        self._given = end
        for rows in self._arrivals(first, end):
            events = _events(self._log, stream, rows, self._project.join.positive_outcomes[0])
            self.events.append(events, received_ms=int(stream.event_time_ms[rows[-1]]))
        asked = stream.questions.event
        low, high = np.searchsorted(asked, [first, end]).tolist()
        questions: IntArray = low + np.flatnonzero(self.asked[low:high])
        return questions

    def _arrivals(self, first: int, end: int) -> list[IntArray]:
        """Return the events in the portions in which they arrive.

        One portion has one time of arrival. It spans less than the join takes for idle time, so
        that the join does not believe that nothing had happened in between.
        """
        if first == end:
            return []
        span_ms = max(1, round(self._project.join.idle_after_s * 1000))
        portion = self._stream.event_time_ms[first:end] // span_ms
        return np.split(np.arange(first, end), np.flatnonzero(np.diff(portion)) + 1)

    def _check(self, line: _Line, questions: IntArray, ranks: IntArray, new: EventColumns) -> None:
        """Ask the retriever about some questions, each with what the log held at its time."""
        asked, taken = self._stream.questions, 0
        rows = np.arange(-len(line.ranks) % self.check_every, len(questions), self.check_every)
        users = self._log.users.decode(asked.user[questions[rows]])
        items = self._log.items.decode(asked.item[questions[rows]])
        until = np.searchsorted(new.event_time_ms, asked.event_time_ms[questions[rows]])
        for row, user, item, end in zip(rows, users, items, until.tolist(), strict=True):
            line.state = line.state.extend(new.take(slice(taken, end)))
            taken = end
            retriever = line.retriever.with_user_state(line.state)
            found = retriever.decode_items(retriever.find(user, _PLACES).positions)
            place = found.index(item) if item in found else _PLACES
            self.answers_checked += 1
            self.answers_differing += abs(place - min(int(ranks[row]), _PLACES)) > 1
        line.state = line.state.extend(new.take(slice(taken, None)))


def _events(log: ReplayedLog, stream: LiveStream, rows: IntArray, outcome: str) -> list[Event]:
    """Return some events of the stream as a producer sends them: impression, then outcome."""
    events = []
    columns = (
        stream.event_id[rows].tolist(),
        log.users.decode(stream.user[rows]),
        log.items.decode(stream.item[rows]),
        stream.event_time_ms[rows].tolist(),
        stream.is_positive[rows].tolist(),
    )
    for key, user, item, time_ms, clicked in zip(*columns, strict=True):
        shown = Event(
            kind="impression",
            event_id=f"{key:016x}",
            request_id=f"{key:016x}",
            user_id=user,
            item_id=item,
            event_time_ms=time_ms,
        )
        events.append(shown)
        if clicked:
            clicked_id = f"{key:016x}-outcome"
            events.append(
                msgspec.structs.replace(shown, kind="outcome", event_id=clicked_id, outcome=outcome)
            )
    return events
