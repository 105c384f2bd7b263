"""A label join that is slow and obviously right: one event after the other, nothing forgotten.

docs/label-join.md in code. Every engine must give what this gives, on every log.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np

from twotower.data.events import EVENT_KINDS, NO_NAME, NO_REQUEST, EventColumns
from twotower.data.label_join.settings import JoinSettings

__all__ = ["OUTCOMES", "STAGES", "Joined", "LogEvent", "as_columns", "join_slowly", "random_log"]

OUTCOMES: Final = ("like", "click")
STAGES: Final = ("pre-ranking", "ranking")
APPEND_MS: Final = 1000


@dataclass(frozen=True)
class LogEvent:
    """One stored event."""

    offset: int
    kind: str
    event_key: int
    user_id: int | bytes
    item_id: int | bytes
    time_ms: int
    received_ms: int
    request_key: int = NO_REQUEST
    name: str = ""
    """Of the outcome or the stage."""

    @property
    def match(self) -> tuple[Any, ...]:
        return (self.user_id, self.item_id, self.request_key)


@dataclass
class Joined:
    """What a join gives: examples as tuples in order, cuts, counts."""

    examples: list[tuple[Any, ...]] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    event_cuts: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    num_undecided: int = 0
    watermark_ms: int | None = None

    def count(self, fate: str) -> None:
        self.counts[fate] = self.counts.get(fate, 0) + 1


@dataclass
class _Impression:
    event: LogEvent
    is_emitted: bool = False
    is_positive: bool = False
    is_credited: bool = False


class _Slow:
    def __init__(self, settings: JoinSettings, time_zone: str) -> None:
        self.window_ms = int(settings.window_s * 1000)
        self.remember_ms = int(settings.remember_s * 1000)
        self.settings = settings
        self.zone = ZoneInfo(time_zone)
        self.joined = Joined()
        self.watermark: int | None = None
        self.watermark_before: int | None = None
        self.received = -1
        self.num_taken = 0
        self.known: dict[int, int] = {}
        self.impressions: list[_Impression] = []
        self.waiting: list[tuple[int, int, str, LogEvent]] = []
        self.outcomes: list[tuple[LogEvent, int]] = []
        self.midnight: datetime | None = None

    def pass_time(self, now_ms: int) -> None:
        """Nothing came for longer than `idle_after_s`: the watermark moves with the clock."""
        idle = now_ms - self.received - int(self.settings.idle_after_s * 1000)
        if self.watermark is not None and idle > 0:
            self.watermark += idle
        self.decide()

    def take(self, event: LogEvent) -> None:
        if self.received >= 0:
            self.pass_time(event.received_ms)
        self.received = max(self.received, event.received_ms)
        self.num_taken += 1
        met = self.watermark if self.watermark is not None else -(10**15)
        newest = self.known.get(event.event_key, -(10**16))
        if event.time_ms > event.received_ms + self.settings.max_future_s * 1000:
            self.joined.count("future")
        elif event.time_ms < met - self.remember_ms:
            self.joined.count("too_late")
        elif newest >= met - self.remember_ms:
            self.joined.count("duplicate")
        else:
            self.known[event.event_key] = max(newest, event.time_ms)
            self.accept(event, met)
            reached = event.time_ms - int(self.settings.allowed_lateness_s * 1000)
            self.watermark = max(met, reached)
        self.decide()

    def accept(self, event: LogEvent, met: int) -> None:
        due = event.time_ms + self.window_ms
        if event.kind == "impression":
            self.impressions.append(_Impression(event))
            self.waiting.append((due, event.offset, "impression", event))
        elif event.kind == "candidate":
            self.waiting.append((due, event.offset, "candidate", event))
        elif event.name in self.settings.positive_outcomes:
            self.outcomes.append((event, max(met, event.time_ms) - self.remember_ms))
        else:
            self.joined.count("other_outcome")
        if event.kind != "outcome":
            self.count_if_late(due)

    def count_if_late(self, due: int) -> None:
        """Count an example that was due before anything of this moment was known."""
        if self.watermark_before is not None and due <= self.watermark_before:
            self.joined.count("emitted_late")

    def decide(self) -> None:
        if self.watermark is None:
            return
        for outcome, oldest in sorted(self.outcomes, key=lambda o: (o[0].time_ms, o[0].offset)):
            if outcome.time_ms <= self.watermark:
                self.credit(outcome, oldest)
        self.emit()
        self.watermark_before = self.watermark
        for outcome, oldest in self.outcomes[:]:
            if outcome.time_ms < self.watermark - self.remember_ms:
                self.joined.count("orphan_outcome")
                self.outcomes.remove((outcome, oldest))

    def credit(self, outcome: LogEvent, oldest: int) -> None:
        fitting = [
            i
            for i in self.impressions
            if i.event.match == outcome.match and oldest <= i.event.time_ms <= outcome.time_ms
        ]
        if not fitting:
            return
        self.outcomes.remove((outcome, oldest))
        found = max(fitting, key=lambda i: (i.event.time_ms, i.event.offset))
        is_in_window = outcome.time_ms <= found.event.time_ms + self.window_ms
        if found.is_credited:
            self.joined.count("repeated_outcome")
        elif is_in_window and not found.is_emitted:
            self.joined.count("credited_outcome")
            found.is_positive = True
        else:
            due = outcome.time_ms + self.window_ms
            self.waiting.append((due, outcome.offset, "late_positive", outcome))
            self.count_if_late(due)
        found.is_credited = True

    def emit(self) -> None:
        assert self.watermark is not None
        due_now = sorted(w for w in self.waiting if w[0] <= self.watermark)
        self.waiting = [w for w in self.waiting if w[0] > self.watermark]
        if self.midnight is None:
            first = datetime.fromtimestamp((self.watermark - self.window_ms) / 1000, timezone.utc)
            self.midnight = self.next_midnight(first.astimezone(self.zone))
        for due, _, kind, event in due_now:
            self.cut(due)
            self.joined.examples.append(self.example(kind, event))
        self.cut(self.watermark)

    def example(self, kind: str, event: LogEvent) -> tuple[Any, ...]:
        is_positive, weight, fate = kind == "late_positive", 1.0, kind
        if kind == "impression":
            found = next(i for i in self.impressions if i.event is event)
            found.is_emitted, is_positive = True, found.is_positive
            fate = "positive" if is_positive else "negative"
        if kind == "late_positive":
            weight = self.settings.late_positive_weight
        self.joined.count(fate)
        stage = event.name.encode() if kind == "candidate" else b""
        ids = (event.event_key, event.user_id, event.item_id, event.time_ms)
        return (*ids, kind, is_positive, weight, stage)

    def cut(self, watermark_ms: int) -> None:
        assert self.midnight is not None
        while self.midnight.timestamp() * 1000 + self.window_ms <= watermark_ms:
            day = (self.midnight - timedelta(hours=1)).date().isoformat()
            self.joined.cuts[day] = len(self.joined.examples)
            self.joined.event_cuts[day] = self.num_taken
            self.midnight = self.next_midnight(self.midnight)

    def next_midnight(self, moment: datetime) -> datetime:
        day = moment.date() + timedelta(days=1)
        return datetime(day.year, day.month, day.day, tzinfo=self.zone)


def join_slowly(
    log: list[LogEvent], settings: JoinSettings, time_zone: str, now_ms: int | None = None
) -> Joined:
    """The truth about a log, read to its end at the time `now_ms`."""
    slow = _Slow(settings, time_zone)
    for event in log:
        slow.take(event)
    if now_ms is not None and log:
        slow.pass_time(now_ms - APPEND_MS)
    slow.joined.num_undecided = len(slow.waiting) + len(slow.outcomes)
    slow.joined.watermark_ms = slow.watermark
    return slow.joined


def random_log(seed: int, num_events: int, *, text_ids: bool = False) -> list[LogEvent]:
    """Impressions and what follows them: out of order, repeated, late, future, without impression,
    with and without requests, with pauses and over midnights. Time is coarse, so that ties happen.
    """
    dice = random.Random(seed)
    sent: list[LogEvent] = []
    received = start = 1_651_960_000_000
    shown: list[LogEvent] = []
    for offset in range(num_events):
        received += dice.choice([0, 0, 1000, 1000, 5000, 5000, 30_000])
        received += dice.choice([600_000, 4_000_000, 90_000_000]) if dice.random() < 0.01 else 0
        delay = dice.choice([0, 0, 0, 0, 0, 1, 5, 20, 60, 300, 2000, 9000]) * 1000
        time_ms = max(received - delay, start)
        if dice.random() < 0.02:
            time_ms = received + dice.choice([100_000, 500_000, 10**9])
        what = dice.random()
        key, request = offset + 1, dice.choice([NO_REQUEST, NO_REQUEST, dice.randrange(1, 50)])
        user: Any = dice.randrange(6) - 2
        item: Any = dice.randrange(4) + 2**61
        if text_ids:
            user, item = f"u{user}".encode(), b"i" * (item % 7 + 1)
        event = LogEvent(offset, "impression", key, user, item, time_ms, received, request)
        if what < 0.05 and sent:
            old = dice.choice(sent[-dice.choice([5, 50, 500]) :])
            event = LogEvent(**(vars(old) | {"offset": offset, "received_ms": received}))
        elif what < 0.45 and shown:
            old = dice.choice(shown[-dice.choice([3, 10, 200]) :])
            late = dice.choice([0, 1, 10, 100, 600, 601, 3000, 5000]) * 1000
            values = vars(old) | {"offset": offset, "event_key": key, "received_ms": received}
            values |= {"kind": "outcome", "name": dice.choice(["click", "click", "like"])}
            values |= {"time_ms": dice.choice([old.time_ms + late, old.time_ms + late, time_ms])}
            event = LogEvent(**values)
        elif what < 0.5:
            event = LogEvent(**(vars(event) | {"kind": "outcome", "name": "click"}))
        elif what < 0.6:
            event = LogEvent(**(vars(event) | {"kind": "candidate", "name": dice.choice(STAGES)}))
        if (event.kind == "impression" and dice.random() < 0.8) or (
            event.kind == "impression" and event.request_key
        ):
            shown.append(event)
        sent.append(event)
    return sent


def as_columns(log: list[LogEvent]) -> EventColumns:
    """The same events as an event log gives them."""
    text = bool(log) and isinstance(log[0].user_id, bytes)
    ids: Any = "S" if text else np.int64
    outcomes = {name: code for code, name in enumerate(OUTCOMES)}
    stages = {name: code for code, name in enumerate(STAGES)}
    return EventColumns(
        offset=np.array([e.offset for e in log], np.int64),
        kind=np.array([EVENT_KINDS.index(e.kind) for e in log], np.uint8),
        event_key=np.array([e.event_key for e in log], np.uint64),
        user_id=np.array([e.user_id for e in log], ids),
        item_id=np.array([e.item_id for e in log], ids),
        event_time_ms=np.array([e.time_ms for e in log], np.int64),
        received_ms=np.array([e.received_ms for e in log], np.int64),
        request_key=np.array([e.request_key for e in log], np.uint64),
        outcome=np.array([outcomes.get(e.name, NO_NAME) for e in log], np.uint8),
        value=np.ones(len(log), np.float32),
        stage=np.array([stages.get(e.name, NO_NAME) for e in log], np.uint8),
        outcome_names=OUTCOMES,
        stage_names=STAGES,
    )
