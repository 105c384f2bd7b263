"""The stream in simulated time: what is served is asked first, and learns afterwards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from toy import write_project
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.example_log import JoinedExamples
from twotower.data.importing import import_tables
from twotower.data.label_join.settings import JoinSettings
from twotower.data.user_state import Ragged
from twotower.errors import DataError
from twotower.metrics import Interval
from twotower.nightly import run_night
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.replay import ReplayedLog
from twotower.replay.comparison import compare, describe, over_time, quantiles_s
from twotower.replay.lists import hours_list, list_ranks, previous_day_list
from twotower.replay.live import LiveScores, moments, replay_live
from twotower.replay.plot import plot_recall
from twotower.replay.served import ServedVectors, rank_targets
from twotower.replay.strategies import LivePopularity, Strategy
from twotower.replay.stream import LiveStream, open_stream
from twotower.serving.retriever import Retriever

FIRST, LAST = "2024-03-03", "2024-03-04"
HOUR_MS = 3_600_000
FROZEN = Strategy(nights=False, increments=False, publish_every_s=3600, new_items=False)
LEARNS = Strategy(nights=False, increments=True, publish_every_s=3600, new_items=False)
BOTH = Strategy(nights=True, increments=True, publish_every_s=3600, night_s=5400)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = write_project(tmp_path_factory.mktemp("live"), num_days=4)
    import_tables(made)
    for day in ("2024-03-01", "2024-03-02", "2024-03-03"):
        run_night(made, day)
    return made


@pytest.fixture(scope="module")
def log(project: Project) -> ReplayedLog:
    return ReplayedLog(ImportedData.open(project.data_path))


@pytest.fixture(scope="module")
def stream(log: ReplayedLog) -> LiveStream:
    return open_stream(log, FIRST, LAST, history_length=10)


@pytest.fixture(scope="module")
def generations(project: Project) -> list[Generation]:
    store = ModelStore(project.data_path)
    return [store.open(name) for name in sorted(store.names())[-2:]]


class Recorder:
    """Learns nothing, and remembers what it was given."""

    def __init__(self, log: ReplayedLog, seen: list[JoinedExamples], promoted: int = -1) -> None:
        self.log, self.seen, self.promoted = log, seen, promoted

    def learn(self, examples: JoinedExamples) -> None:
        self.seen.append(examples)

    def take_delta_rows(self) -> DeltaRows:
        none = np.zeros((0, 16), np.float32)
        items = self.log.items.ids[: max(0, self.promoted)]
        vectors = np.full((len(items), 16), 0.0, np.float32)
        return DeltaRows(self.log.users.ids[:0], none, items, vectors, vectors)


def test_the_stream_is_in_order_and_every_click_is_a_question(
    log: ReplayedLog, stream: LiveStream
) -> None:
    assert (np.diff(stream.event_time_ms) >= 0).all()
    assert len(stream.event_id) == sum(len(log.events(day)) for day in (FIRST, LAST))
    asked = stream.questions
    np.testing.assert_array_equal(asked.event, np.flatnonzero(stream.is_positive))
    with pytest.raises(DataError, match="at least one before them"):
        open_stream(log, "2024-03-01", LAST, 10)


def test_a_question_brings_what_its_user_did_at_an_earlier_time(
    log: ReplayedLog, stream: LiveStream
) -> None:
    asked = stream.questions
    part = np.arange(len(asked.event))
    recent, seen = asked.recent_of(part), asked.seen_of(part)
    clicks: dict[int, list[int]] = {}
    shown: dict[int, list[int]] = {}
    for user, items in enumerate(np.split(*_lists(log.history_positives))):
        clicks[user] = items.tolist()
    for user, items in enumerate(np.split(*_lists(log.history_seen))):
        shown[user] = items.tolist()
    question = 0
    for day in log.data.days:
        events = log.events(day)
        users, items = log.users.positions(events.user_id), log.items.positions(events.item_id)
        rows = zip(users.tolist(), items.tolist(), events.outcome.tolist(), strict=True)
        for user, item, clicked in rows:
            if day >= FIRST and clicked:
                assert recent.list_at(question).tolist() == clicks[user][-10:]
                assert seen.list_at(question).tolist() == shown[user]
                assert asked.is_scored[question] == (item not in shown[user])
                question += 1
            shown[user].append(item)
            clicks[user] += [item] if clicked else []
    assert question == len(part)


def _lists(lists: Ragged) -> tuple[np.ndarray, np.ndarray]:
    return lists.values, lists.offsets[1:-1]


def test_ranks_leave_out_what_was_shown_and_settle_ties_by_position() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (40, 30)).astype(np.float32)
    targets = rng.integers(0, 30, 40)
    lists = [np.setdiff1d(rng.choice(30, 6), [target]) for target in targets]
    lengths = [0, *np.cumsum([len(values) for values in lists])]
    seen = Ragged(np.concatenate(lists), np.array(lengths, np.int64))
    found = rank_targets(scores.copy(), targets, seen)
    for row in range(40):
        order = [item for item in np.argsort(-scores[row], kind="stable") if item not in lists[row]]
        assert found[row] == order.index(targets[row])


def test_a_list_ranks_as_its_counts_do() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, 25)
    targets = rng.integers(0, 25, 50)
    lists = [np.setdiff1d(rng.choice(25, 5), [target]) for target in targets]
    repeated = [np.repeat(values, 2) for values in lists]
    lengths = np.array([0, *np.cumsum([len(values) for values in repeated])], np.int64)
    found = list_ranks(counts, targets, Ragged(np.concatenate(repeated), lengths))
    for row, target in enumerate(targets):
        order = [i for i in np.argsort(-counts, kind="stable") if i not in lists[row]]
        assert found[row] == (order.index(target) if counts[target] else 25)


def test_batches_rank_as_the_retriever_answers(
    log: ReplayedLog, stream: LiveStream, generations: Sequence[Generation]
) -> None:
    part = np.flatnonzero(stream.questions.is_scored)[:40]
    asked = stream.questions
    ranks = ServedVectors(generations[0], log).ranks(asked, part)
    retriever = Retriever(generations[0])
    for rank, question in zip(ranks.tolist(), part, strict=True):
        one = np.array([question])
        answer = retriever.retrieve(
            log.users.decode([int(asked.user[question])])[0],
            len(log.items),
            recent=log.items.decode(asked.recent_of(one).values),
            exclude=log.items.decode(asked.seen_of(one).values),
        )
        found = [candidate.item_id for candidate in answer.candidates]
        assert found[rank] == log.items.decode([int(asked.item[question])])[0]


def test_nothing_is_learned_before_it_was_scored(
    log: ReplayedLog, stream: LiveStream, generations: Sequence[Generation]
) -> None:
    learned: list[JoinedExamples] = []
    join = JoinSettings(window_s=540, allowed_lateness_s=60)
    scores = replay_live(
        log, stream, generations, LEARNS, lambda _: Recorder(log, learned), join=join
    )
    offsets = np.concatenate([examples.offset for examples in learned])
    np.testing.assert_array_equal(offsets, np.arange(len(offsets)))
    for examples in learned:
        newest, oldest = examples.event_time_ms[-1], examples.event_time_ms[0]
        published = -(-(int(newest) + 600_001 - stream.start_ms) // HOUR_MS) * HOUR_MS
        assert newest - oldest <= 2 * HOUR_MS
        assert published + stream.start_ms >= newest + 600_000
    assert scores.freshness_s.min() >= 600
    assert scores.freshness_s.max() <= 2 * 3600 + 600
    assert scores.deltas_published == len(learned)
    np.testing.assert_array_equal(scores.question, np.flatnonzero(stream.questions.is_scored))


def test_increments_start_again_from_the_cut_of_what_goes_live(
    log: ReplayedLog, stream: LiveStream, generations: Sequence[Generation]
) -> None:
    schedule = moments(stream, BOTH)
    activation = int(stream.ends_ms[0]) + 5_400_000
    assert [(m.at_ms, m.generation) for m in schedule if m.generation is not None] == [
        (stream.start_ms, 0),
        (activation, 1),
    ]
    given: dict[str, list[JoinedExamples]] = {}

    def start(generation: Generation) -> Recorder:
        return Recorder(log, given.setdefault(generation.name, []))

    replay_live(log, stream, generations, BOTH, start)
    first, second = given[generations[0].name], given[generations[1].name]
    assert first[-1].event_time_ms[-1] >= activation - 2 * HOUR_MS, "the old one goes on till then"
    catch_up = second[0].event_time_ms
    assert catch_up[0] >= stream.ends_ms[0]
    assert catch_up[-1] >= activation - HOUR_MS


def test_rows_of_a_delta_count_from_their_publish_on(
    log: ReplayedLog, stream: LiveStream, generations: Sequence[Generation]
) -> None:
    """Items with a vector of zeros fall behind all that anybody likes."""
    frozen = replay_live(log, stream, generations, FROZEN, lambda _: Recorder(log, []))
    moved = replay_live(log, stream, generations, LEARNS, lambda _: Recorder(log, [], promoted=40))
    times = stream.questions.event_time_ms[frozen.question]
    first_hour = times < stream.start_ms + HOUR_MS
    np.testing.assert_array_equal(frozen.rank[first_hour], moved.rank[first_hour])
    hurt = stream.questions.item[frozen.question] < 40
    assert moved.rank[hurt & ~first_hour].mean() > 2 * frozen.rank[hurt & ~first_hour].mean()


def test_live_popularity_moves_what_is_clicked_now_to_the_front(
    log: ReplayedLog, stream: LiveStream, generations: Sequence[Generation]
) -> None:
    popular = Strategy(
        nights=False,
        increments=False,
        publish_every_s=3600,
        new_items=False,
        popularity=LivePopularity(weight=1000.0, half_life_h=1.0),
    )
    scores = replay_live(log, stream, generations, popular, lambda _: Recorder(log, []))
    asked = stream.questions
    last = scores.question[-1]
    now = stream.start_ms + (int(asked.event_time_ms[last]) - stream.start_ms) // HOUR_MS * HOUR_MS
    weights = np.zeros(len(log.items))
    for day in ("2024-03-02", FIRST, LAST):
        events = log.events(day)
        known = events.outcome & (events.event_time_ms < now)
        items = log.items.positions(events.item_id[known])
        np.add.at(weights, items, 0.5 ** ((now - events.event_time_ms[known]) / HOUR_MS))
    seen = asked.seen_of(np.array([last])).values
    order = [item for item in np.argsort(-weights, kind="stable") if item not in set(seen)]
    assert abs(order.index(asked.item[last]) - scores.rank[-1]) <= 1


def test_the_lists_know_their_window_and_nothing_else(log: ReplayedLog, stream: LiveStream) -> None:
    asked = stream.questions
    hours = hours_list(log, stream, window_s=7200, refresh_s=3600)
    place = len(hours.question) // 2
    question = hours.question[place]
    now = stream.start_ms + (asked.event_time_ms[question] - stream.start_ms) // HOUR_MS * HOUR_MS
    window = (asked.event_time_ms < now) & (asked.event_time_ms >= now - 2 * HOUR_MS)
    counts = np.bincount(asked.item[window], minlength=len(log.items))
    one = np.array([question])
    expected = list_ranks(counts, asked.item[one], asked.seen_of(one))
    assert hours.rank[place] == expected[0]
    day = previous_day_list(log, stream)
    events = log.events("2024-03-02")
    counts = np.bincount(
        log.items.positions(events.item_id[events.outcome]), minlength=len(log.items)
    )
    assert day.rank[0] == list_ranks(counts, asked.item[:1], asked.seen_of(np.arange(1)))[0]


def test_a_difference_is_paired_by_user_and_zero_says_so(stream: LiveStream) -> None:
    asked = np.flatnonzero(stream.questions.is_scored)
    rng = np.random.default_rng(0)
    rank = rng.integers(0, 80, len(asked))

    def scores(ranks: np.ndarray) -> LiveScores:
        return LiveScores(asked, ranks, np.array([60.0, 120.0]), 1)

    found = compare(stream, {"a": scores(rank), "same": scores(rank), "b": scores(rank // 2)}, "a")
    assert found["a"].difference is None
    assert found["a"].recall[50].estimate == pytest.approx((rank < 50).mean())
    same, better = found["same"].difference, found["b"].difference
    assert same is not None
    assert better is not None
    assert describe(same[50]).startswith("no difference seen")
    assert better[50].low > 0
    assert describe(better[50]).startswith("+")
    assert describe(Interval(-0.01, -0.02, -0.001)).startswith("-0.0100")
    assert describe(Interval(0.001, -0.002, 0.004)) == "no difference seen (-0.0020 to +0.0040)"
    with pytest.raises(DataError, match="same clicks"):
        compare(stream, {"a": scores(rank), "b": scores(rank)._replace(question=asked + 1)}, "a")
    assert quantiles_s(scores(rank)) == {"p50": 90.0, "p99": 119.4}


def test_recall_over_time_is_drawn(stream: LiveStream, tmp_path: Path) -> None:
    asked = np.flatnonzero(stream.questions.is_scored)
    late = stream.questions.event_time_ms[asked] >= stream.ends_ms[0]
    scores = LiveScores(asked, np.where(late, 0, 99), np.zeros(0), 0)
    starts, shares = over_time(stream, scores, k=50, bucket_s=3600 * 12)
    assert starts[0] == stream.start_ms
    assert shares == [0.0, 0.0, 1.0, 1.0]
    path = tmp_path / "recall.png"
    plot_recall(path, starts, {"full_only": shares}, k=50, time_zone="UTC", title="toy")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
