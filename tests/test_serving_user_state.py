"""What users did since the cut changes their answers, and is what a trainer would know of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from day_events import clicked, extended, rows_over, shown
from test_serving_retriever import BUSY_USER, UNKNOWN_USER, USERS, item_ids, publish_live
from tiny_checkpoint import CUT_MS, external_ids, tiny_checkpoint
from twotower.data.events import Event
from twotower.data.ids import IdKind
from twotower.publishing.trainer_vectors import trainer_user_vectors
from twotower.serving.retriever import Retriever
from twotower.serving.user_state import UserEvents

ITEMS = external_ids("int", "item", 60)


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    path = tmp_path_factory.mktemp("user_state")
    publish_live(path, tiny_checkpoint())
    return Retriever.open(path)


def with_events(retriever: Retriever, folder: Path, events: list[Event]) -> Retriever:
    return retriever.with_user_state(extended(retriever.new_user_state(), folder, events))


def test_an_answer_names_the_offset(retriever: Retriever, tmp_path: Path) -> None:
    assert retriever.retrieve(BUSY_USER, k=1).user_state_offset is None
    empty = retriever.with_user_state(retriever.new_user_state())
    assert empty.retrieve(BUSY_USER, k=1).user_state_offset == 0
    later = with_events(retriever, tmp_path, [shown(n, BUSY_USER, ITEMS[n]) for n in range(3)])
    assert later.retrieve(BUSY_USER, k=1).user_state_offset == 3
    assert retriever.retrieve(BUSY_USER, k=1).user_state_offset is None


def test_what_was_shown_since_the_cut_does_not_come_back(
    retriever: Retriever, tmp_path: Path
) -> None:
    before = item_ids(retriever.retrieve(BUSY_USER, k=10))
    events = [shown(1, BUSY_USER, before[0]), clicked(2, BUSY_USER, before[2], outcome="like")]
    after = with_events(retriever, tmp_path, events)
    answer = after.retrieve(BUSY_USER, k=8)
    assert item_ids(answer) == [before[1], *before[3:10]]
    assert answer.recent == retriever.retrieve(BUSY_USER, k=1).recent
    everything = after.retrieve(BUSY_USER, k=57, include_seen=True)
    assert {before[0], before[2]} <= set(item_ids(everything))
    other = after.retrieve(USERS[4], k=10)
    assert other.candidates == retriever.retrieve(USERS[4], k=10).candidates


def test_an_eliminated_candidate_was_not_seen(retriever: Retriever, tmp_path: Path) -> None:
    best = item_ids(retriever.retrieve(BUSY_USER, k=1))[0]
    candidate = Event(
        kind="candidate",
        event_id="c",
        user_id=BUSY_USER,
        item_id=best,
        event_time_ms=CUT_MS + 1,
        stage="ranking",
    )
    after = with_events(retriever, tmp_path, [candidate])
    assert item_ids(after.retrieve(BUSY_USER, k=1)) == [best]


def test_what_happened_before_the_cut_is_the_generations(
    retriever: Retriever, tmp_path: Path
) -> None:
    best = item_ids(retriever.retrieve(BUSY_USER, k=1))[0]
    events = [shown(1, BUSY_USER, best, after_ms=-2), shown(2, BUSY_USER, ITEMS[5], after_ms=-2)]
    after = with_events(retriever, tmp_path, events)
    assert item_ids(after.retrieve(BUSY_USER, k=1)) == [best]
    assert after.user_state is not None
    assert after.user_state.num_events == 1  # the second is of the moment of the cut


def test_what_came_after_the_cut_counts_whenever_it_happened(
    retriever: Retriever, tmp_path: Path
) -> None:
    """A phone without a network sends the evening's click at night: the generation has it not."""
    best, *others = item_ids(retriever.retrieve(BUSY_USER, k=3))
    evening = [shown(n, BUSY_USER, item, after_ms=-9_000_000) for n, item in enumerate(others)]
    events = [*evening, clicked(2, BUSY_USER, best, after_ms=-9_000_000)]
    state = extended(retriever.new_user_state(event_cut=2), tmp_path, events)
    after = retriever.with_user_state(state)
    answer = after.retrieve(BUSY_USER, k=50)
    assert best not in item_ids(answer)
    assert set(others) <= set(item_ids(answer))
    assert best in [known.item_id for known in answer.recent]
    assert state.num_events == 1


@pytest.mark.parametrize("kind", ["int", "str"])
@pytest.mark.parametrize("pooling", ["mean", "sqrt"])
def test_a_user_vector_is_that_of_a_trainer_who_knows_the_same(
    tmp_path: Path, kind: IdKind, pooling: str
) -> None:
    """The history is what came before: the state at each offset is the trainer's at that event."""
    checkpoint = tiny_checkpoint(kind=kind, history_pooling=pooling)  # type: ignore[arg-type]
    publish_live(tmp_path, checkpoint)
    retriever = Retriever.open(tmp_path)
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, 12, 40), rng.integers(0, 60, 40)
    is_click = rng.random(40) < 0.5
    user_ids, known_items = checkpoint.users.decode(users), checkpoint.items.decode(items)
    events = [
        (clicked if click else shown)(number, user, item)
        for number, (user, item, click) in enumerate(
            zip(user_ids, known_items, is_click.tolist(), strict=True)
        )
    ]
    state, trainer = retriever.new_user_state(), checkpoint.user_state
    for number, event in enumerate(events):
        checkpoint.user_state = trainer
        expected = trainer_user_vectors(checkpoint, users[number : number + 1])
        found = _user_vector(retriever.with_user_state(state), event.user_id)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        state = extended(state, tmp_path, [event])
        one = slice(number, number + 1)
        trainer = trainer.advance(
            users[one], items[one], is_click[one], num_users=12, recent_limit=4
        )
    assert not np.allclose(
        _user_vector(retriever, user_ids[-1]),
        _user_vector(retriever.with_user_state(state), user_ids[-1]),
        atol=1e-3,
    )


def _user_vector(retriever: Retriever, user: int | str) -> np.ndarray:
    """Found through the scores of all items, as a request finds it."""
    answer = retriever.retrieve(user, k=57, include_seen=True)
    positions = retriever.encoder.items.positions(item_ids(answer))
    vectors = retriever.encoder.item_vectors(positions).astype(np.float64)
    scores = np.array([candidate.score for candidate in answer.candidates])
    return np.asarray(np.linalg.lstsq(vectors, scores, rcond=None)[0])[None]


def test_clicks_are_in_the_order_of_their_times(retriever: Retriever, tmp_path: Path) -> None:
    clicks = [(5, ITEMS[1]), (9, ITEMS[2]), (7, ITEMS[3]), (8, ITEMS[4]), (6, ITEMS[5])]
    after = with_events(
        retriever, tmp_path, [clicked(number, UNKNOWN_USER, item) for number, item in clicks]
    )
    recent = [click.item_id for click in after.retrieve(UNKNOWN_USER, k=1).recent]
    assert recent == [ITEMS[2], ITEMS[4], ITEMS[3], ITEMS[5]]  # the newest four, as the history


def test_given_clicks_win_but_what_was_seen_stays_hidden(
    retriever: Retriever, tmp_path: Path
) -> None:
    best = item_ids(retriever.retrieve(BUSY_USER, k=2, recent=[ITEMS[7]]))
    after = with_events(retriever, tmp_path, [clicked(1, BUSY_USER, best[0])])
    answer = after.retrieve(BUSY_USER, k=1, recent=[ITEMS[7]])
    assert item_ids(answer) == best[1:]
    assert [click.item_id for click in answer.recent] == [ITEMS[7]]


def test_items_that_no_generation_knows_count_as_clicks(
    retriever: Retriever, tmp_path: Path
) -> None:
    """They have the unknown-ID row in the history, as they would have in training."""
    new = [9_000_002, 9_000_001]
    events = [clicked(number, UNKNOWN_USER, item) for number, item in enumerate(new)]
    after = with_events(retriever, tmp_path, events)
    answer = after.retrieve(UNKNOWN_USER, k=5)
    assert [click.item_id for click in answer.recent] == new[::-1]
    assert answer.degraded == ["unknown_user"]
    assert answer.candidates != retriever.retrieve(UNKNOWN_USER, k=5).candidates
    found = after.with_rows(rows_over(retriever, items=new)).retrieve(
        UNKNOWN_USER, k=60, include_seen=True
    )
    assert set(new) <= set(item_ids(found))
    assert [click.item_id for click in found.recent] == new[::-1]
    assert not set(new) & set(
        item_ids(after.with_rows(rows_over(retriever, items=new)).retrieve(UNKNOWN_USER, k=60))
    )


def test_a_click_on_a_new_item_leaves_the_others_what_they_are(
    retriever: Retriever, tmp_path: Path
) -> None:
    answers = []
    for number, known in enumerate(ITEMS[7:9]):
        events = [clicked(0, UNKNOWN_USER, known), clicked(1, UNKNOWN_USER, 9_000_001)]
        after = with_events(retriever, tmp_path / str(number), events)
        answers.append(after.retrieve(UNKNOWN_USER, k=57, include_seen=True).candidates)
    assert answers[0] != answers[1]


@pytest.mark.parametrize("kind", ["int", "str"])
def test_the_pieces_of_the_log_do_not_matter(tmp_path: Path, kind: IdKind) -> None:
    publish_live(tmp_path, tiny_checkpoint(kind=kind))
    retriever = Retriever.open(tmp_path)
    rng = np.random.default_rng(2)
    users = [*external_ids(kind, "user", 12), *external_ids(kind, "a stranger of long name", 5)]
    items = [*external_ids(kind, "item", 60), *external_ids(kind, "new", 9)]
    events = [
        (clicked if rng.random() < 0.4 else shown)(
            number,
            users[rng.integers(len(users))],
            items[rng.integers(len(items))],
            after_ms=int(rng.integers(-300, 300)),
        )
        for number in range(500)
    ]
    answers = []
    for piece in (1, 7, 64, 500):
        state = extended(retriever.new_user_state(max_events=300), tmp_path, events, piece)
        answering = retriever.with_user_state(state)
        answers.append([msgspec.json.encode(answering.retrieve(user, 10)) for user in users])
    assert answers[1:] == answers[:-1]
    assert answers[0] != [msgspec.json.encode(retriever.retrieve(user, 10)) for user in users]


def test_the_oldest_events_are_forgotten(retriever: Retriever, tmp_path: Path) -> None:
    best = item_ids(retriever.retrieve(BUSY_USER, k=2))
    events = [shown(n, BUSY_USER, item) for n, item in enumerate(best)]
    events += [shown(n, USERS[0], ITEMS[n]) for n in range(2, 50)]
    state = extended(retriever.new_user_state(max_events=49), tmp_path, events, 5)
    assert item_ids(retriever.with_user_state(state).retrieve(BUSY_USER, k=1)) == [best[0]]
    assert 49 <= state.num_events <= 60
    one_less = extended(retriever.new_user_state(max_events=50), tmp_path, [], 5)
    assert one_less.offset == 50
    assert item_ids(retriever.with_user_state(one_less).retrieve(BUSY_USER, k=1)) != best[:1]


def test_a_snapshot_never_changes(retriever: Retriever, tmp_path: Path) -> None:
    first = extended(retriever.new_user_state(), tmp_path, [clicked(1, BUSY_USER, ITEMS[9])])
    before = retriever.with_user_state(first).retrieve(BUSY_USER, k=20)
    second = extended(first, tmp_path, [clicked(2, BUSY_USER, ITEMS[8])])
    assert retriever.with_user_state(first).retrieve(BUSY_USER, k=20) == before
    assert retriever.with_user_state(second).retrieve(BUSY_USER, k=20) != before
    assert (first.offset, second.offset) == (1, 2)
    assert (first.newest_event_time_ms, second.newest_event_time_ms) == (CUT_MS + 1, CUT_MS + 2)


def test_nothing_new_is_the_same_snapshot(retriever: Retriever, tmp_path: Path) -> None:
    state = extended(retriever.new_user_state(), tmp_path, [clicked(1, BUSY_USER, ITEMS[9])])
    assert isinstance(state, UserEvents)
    assert extended(state, tmp_path, []) is state
