"""The label join against the truth: a conformance suite for any engine, and this one's batches."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import Any

import msgspec
import numpy as np
import pytest

from label_join_reference import (
    Joined,
    LogEvent,
    as_columns,
    join_slowly,
    random_log,
)
from twotower.data.example_log import EXAMPLE_KINDS, JoinedExamples
from twotower.data.label_join.batch import EMITTED_LATE, FATES, join_batch, newest_dropped
from twotower.data.label_join.settings import JoinSettings
from twotower.data.label_join.state import JoinState, decode_state, encode_state
from twotower.errors import CorruptArtifact, LineageError

SETTINGS = JoinSettings(late_positive_weight=0.5)
ZONE = "Europe/Paris"
START_MS = 1_651_960_000_000


def as_tuples(examples: JoinedExamples) -> list[tuple[Any, ...]]:
    columns = [column.tolist() for column in examples[1:]]
    kind = columns[4]
    columns[4] = [EXAMPLE_KINDS[code] for code in kind]
    return list(zip(*columns, strict=True))


def event(offset: int, kind: str, at_s: float, **changed: Any) -> LogEvent:
    """An event of one user and one item, received when it happened unless told otherwise."""
    time_ms = START_MS + int(at_s * 1000)
    name = {"outcome": "click", "candidate": "ranking"}.get(kind, "")
    values: dict[str, Any] = {
        "received_ms": time_ms,
        "event_key": offset + 1,
        "name": name,
        "request_key": 9,
    }
    return LogEvent(
        offset=offset, kind=kind, user_id=1, item_id=2, time_ms=time_ms, **(values | changed)
    )


class LabelJoinConformance(ABC):
    """What every engine must give; the truth comes from a join that looks at one event at a time.

    Subclass it with `join`, which reads a whole log at the time `now_ms`.
    """

    @abstractmethod
    def join(
        self, log: list[LogEvent], settings: JoinSettings, time_zone: str, now_ms: int | None
    ) -> Joined:
        """Return what the engine makes of the log."""

    @pytest.mark.parametrize("seed", range(24))
    def test_random_logs(self, seed: int) -> None:
        dice = random.Random(seed)
        log = random_log(seed, dice.choice([40, 400]), text_ids=seed % 2 == 1)
        pause_ms = dice.choice([0, 5000, 700_000, 10**8])
        now_ms = None if seed % 3 == 0 else log[-1].received_ms + pause_ms
        truth = join_slowly(log, SETTINGS, ZONE, now_ms)
        found = self.join(log, SETTINGS, ZONE, now_ms)
        assert found.examples == truth.examples
        assert (found.cuts, found.event_cuts) == (truth.cuts, truth.event_cuts)
        assert found.counts == truth.counts
        assert found.num_undecided == truth.num_undecided
        events = sum(found.counts.values()) - found.counts.get(EMITTED_LATE, 0)
        assert events + found.num_undecided == len(log), "an event has no fate, or two"

    def test_the_random_logs_hold_every_fate(self) -> None:
        truths = [join_slowly(random_log(seed, 400), SETTINGS, ZONE) for seed in range(3)]
        assert {fate for truth in truths for fate in truth.counts} == {*FATES, EMITTED_LATE}

    @pytest.mark.parametrize(
        ("log", "expected"),
        [
            ([event(0, "impression", 0)], [(1, "impression", False, 1.0)]),
            (
                [event(0, "impression", 0), event(1, "outcome", 600)],
                [(1, "impression", True, 1.0)],
            ),
            (
                [event(0, "impression", 0), event(1, "outcome", 600.001)],
                [(1, "impression", False, 1.0), (2, "late_positive", True, 0.5)],
            ),
            (  # the outcome comes first
                [event(0, "outcome", 5), event(1, "impression", 0)],
                [(2, "impression", True, 1.0)],
            ),
            (  # in time, but after its impression was emitted
                [
                    event(0, "impression", 0),
                    event(1, "candidate", 700),
                    event(2, "outcome", 5),
                    event(3, "outcome", 6),
                ],
                [
                    (1, "impression", False, 1.0),
                    (3, "late_positive", True, 0.5),
                    (2, "candidate", False, 1.0),
                ],
            ),
            (  # the later of two impressions that it can have followed
                [event(0, "impression", 0), event(1, "impression", 9), event(2, "outcome", 9)],
                [(1, "impression", False, 1.0), (2, "impression", True, 1.0)],
            ),
            (  # of another request
                [event(0, "impression", 0), event(1, "outcome", 5, request_key=8)],
                [(1, "impression", False, 1.0)],
            ),
            (  # not a positive
                [event(0, "impression", 0), event(1, "outcome", 5, name="like")],
                [(1, "impression", False, 1.0)],
            ),
            (  # before it
                [event(0, "outcome", 0), event(1, "impression", 5)],
                [(2, "impression", False, 1.0)],
            ),
            (  # the future is not believed, and does not move the watermark
                [
                    event(0, "impression", 10**6, received_ms=START_MS),
                    event(1, "impression", 1),
                    event(2, "outcome", 2),
                ],
                [(2, "impression", True, 1.0)],
            ),
            (  # a repeated event
                [event(0, "impression", 0), event(1, "impression", 0, event_key=1)],
                [(1, "impression", False, 1.0)],
            ),
        ],
    )
    def test_truths(self, log: list[LogEvent], expected: list[tuple[Any, ...]]) -> None:
        found = self.join(log, SETTINGS, ZONE, START_MS + 3_000_000)
        assert [(row[0], *row[4:7]) for row in found.examples] == expected

    def test_an_event_id_is_known_for_a_time(self) -> None:
        log = [event(n, "impression", at, event_key=7) for n, at in enumerate((0, 3660, 9000))]
        found = self.join(log, SETTINGS, ZONE, START_MS + 12_000_000)
        assert found.counts == {"negative": 2, "duplicate": 1}

    def test_idleness_moves_the_watermark(self) -> None:
        log = [event(0, "impression", 0)]
        last_s = 600 + 60 + 60 + 1  # window, lateness, idleness, one second on its way to the disk
        for now_s, emitted in ((last_s - 0.001, 0), (last_s, 1)):
            found = self.join(log, SETTINGS, ZONE, START_MS + int(now_s * 1000))
            assert len(found.examples) == emitted

    def test_a_day_is_a_local_day(self) -> None:
        midnight_s = (1_651_960_800_000 - START_MS) / 1000  # of 8 May 2022 in Paris
        log = [event(n, "impression", midnight_s + at) for n, at in enumerate((-1, 0, 700))]
        assert self.join(log, SETTINGS, ZONE, START_MS + 9_000_000).cuts == {"2022-05-07": 1}


class TestBatchJoin(LabelJoinConformance):
    """The embedded join, whatever the batches."""

    def join(
        self, log: list[LogEvent], settings: JoinSettings, time_zone: str, now_ms: int | None
    ) -> Joined:
        dice = random.Random(len(log))
        found, state = join_in_batches(log, settings, time_zone, now_ms, [])
        for _ in range(3):
            limits = sorted(dice.choices(range(len(log) + 1), k=5))
            again, its_state = join_in_batches(log, settings, time_zone, now_ms, limits)
            assert again == found
            assert encode_state(its_state) == encode_state(state)
        return found


def join_in_batches(
    log: list[LogEvent],
    settings: JoinSettings,
    time_zone: str,
    now_ms: int | None,
    limits: list[int],
) -> tuple[Joined, JoinState]:
    """Join a log cut at `limits`; the state goes through its bytes in between."""
    state, joined = JoinState.empty(), Joined()
    columns = as_columns(log)
    for start, end in zip([0, *limits], [*limits, len(log)], strict=True):
        now = now_ms if end == len(log) else None
        batch = join_batch(state, columns.take(slice(start, end)), settings, time_zone, now)
        state = decode_state(encode_state(batch.state))
        joined.examples += as_tuples(batch.examples)
        joined.cuts |= batch.cuts.cuts
        joined.event_cuts |= {day: start + n for day, n in batch.cuts.num_events.items()}
        for fate, events in batch.counts.items():
            if events:
                joined.counts[fate] = joined.counts.get(fate, 0) + events
    joined.num_undecided = state.num_undecided
    joined.watermark_ms = state.clock.reached_ms
    return joined, state


def test_the_state_is_bounded_by_time() -> None:
    """One event a second: what is held stops growing after the time that is remembered."""
    log = [event(n, "impression", n, request_key=n) for n in range(9000)]
    half, _ = join_in_batches(log[:4500], SETTINGS, ZONE, None, [])
    sizes = [
        join_in_batches(log[:end], SETTINGS, ZONE, None, [])[1].num_rows for end in (4500, 9000)
    ]
    assert sizes[0] == sizes[1] < 8500
    assert half.num_undecided < 700


def test_a_longer_window_takes_nothing_from_what_was_emitted() -> None:
    """Settings hold from the next event on: the impression is out, so its click is one more."""
    log = [event(0, "impression", 0), event(1, "candidate", 700), event(2, "outcome", 5)]
    first = join_batch(JoinState.empty(), as_columns(log[:2]), SETTINGS, ZONE, None)
    assert as_tuples(first.examples)[0][4:6] == ("impression", False)
    longer = msgspec.structs.replace(SETTINGS, window_s=3000.0, remember_s=7200.0)
    later = as_columns(log[2:])
    second = join_batch(first.state, later, longer, ZONE, START_MS + 9_000_000)
    assert [row[4] for row in as_tuples(second.examples)] == ["late_positive", "candidate"]


def test_ids_of_another_kind_are_refused() -> None:
    log = random_log(1, 20)
    _, state = join_in_batches(log, SETTINGS, ZONE, None, [])
    text = as_columns(random_log(1, 20, text_ids=True))
    text = text._replace(event_key=text.event_key + np.uint64(1000))
    with pytest.raises(LineageError, match="different projects"):
        join_batch(state, text, SETTINGS, ZONE, None)


def test_a_state_that_cannot_be_read_is_refused() -> None:
    content = encode_state(JoinState.empty())
    for wrong in (b"", content[:-4], content.replace(b"S1", b"O1")):
        with pytest.raises(CorruptArtifact, match="cannot be read"):
            decode_state(wrong)
    newer = msgspec.msgpack.decode(content) | {"version": 2}
    with pytest.raises(CorruptArtifact, match="format version 2"):
        decode_state(msgspec.msgpack.encode(newer))


def test_what_was_dropped_is_the_same_in_any_batches() -> None:
    fates = [(offset, "future") for offset in np.random.default_rng(3).permutation(500).tolist()]
    together = newest_dropped(fates)
    assert newest_dropped([*newest_dropped(fates[:200]), *fates[200:]]) == together
    assert [offset for offset, _ in together] == list(range(400, 500))


def test_a_memory_shorter_than_the_wait_is_refused() -> None:
    with pytest.raises(ValueError, match="at least window_s"):
        JoinSettings(remember_s=600, window_s=600, allowed_lateness_s=60)
