"""Deltas over a generation: answers from newer rows, and the base stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from day_events import rows_over
from test_serving_retriever import BUSY_USER, UNKNOWN_USER, USERS, item_ids, publish_live
from tiny_checkpoint import CUT_MS, external_ids, tiny_checkpoint
from twotower.data.ids import Id, IdKind
from twotower.errors import CorruptArtifact, LineageError
from twotower.index.settings import IndexSettings
from twotower.publishing.delta import Delta, DeltaSpan, read_deltas
from twotower.publishing.delta_rows import DeltaRows, merge_rows
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever

ITEMS = external_ids("int", "item", 60)


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    publish_live(tmp_path, tiny_checkpoint())
    return Retriever.open(tmp_path)


def write(retriever: Retriever, rows: DeltaRows, first: int, through: int) -> Delta:
    span = DeltaSpan(
        first_offset=first, through_offset=through, newest_event_time_ms=CUT_MS + through
    )
    return write_delta(retriever.base.path.parents[1], retriever.base, rows, span, now_ms=1)


def scores(retriever: Retriever, user: Id) -> dict[Id, float]:
    answer = retriever.retrieve(user, k=100, include_seen=True)
    return {candidate.item_id: candidate.score for candidate in answer.candidates}


def test_a_touched_user_is_answered_from_the_new_row(retriever: Retriever) -> None:
    rows = rows_over(retriever, users=[BUSY_USER])
    after = retriever.with_rows(rows, CUT_MS + 5)
    position = int(retriever.encoder.users.positions([BUSY_USER])[0])
    vector = retriever.encoder.user_vector(
        position,
        retriever.encoder.profile(position, {})[0],
        retriever.encoder.recent.list_at(position),
        rows.user_embeddings,
    )
    items = list(scores(retriever, BUSY_USER))
    vectors = retriever.encoder.item_vectors(retriever.encoder.items.positions(items))
    found = scores(after, BUSY_USER)
    np.testing.assert_allclose([found[item] for item in items], vectors @ vector[0], atol=1e-6)
    assert scores(retriever, BUSY_USER) != found
    for user in (USERS[4], UNKNOWN_USER):
        assert scores(after, user) == scores(retriever, user)
    answer = after.retrieve(BUSY_USER, k=1)
    assert (answer.generation, answer.sequence, answer.delta) == ("g-000001", 1, 1)
    assert retriever.retrieve(BUSY_USER, k=1).delta is None
    newest = [served.overlay.newest_event_time_ms for served in (retriever, after)]
    assert newest == [CUT_MS, CUT_MS + 5]


def test_an_admitted_user_is_known(retriever: Retriever) -> None:
    assert retriever.retrieve(UNKNOWN_USER, k=3).degraded == ["unknown_user"]
    after = retriever.with_rows(rows_over(retriever, users=[5, UNKNOWN_USER]))
    answer = after.retrieve(UNKNOWN_USER, k=3)
    assert answer.degraded == []
    assert answer.candidates != retriever.retrieve(UNKNOWN_USER, k=3).candidates
    assert after.retrieve(UNKNOWN_USER + 1, k=3).degraded == ["unknown_user"]


def test_an_admitted_row_that_is_the_unknown_row_changes_nothing(retriever: Retriever) -> None:
    row = retriever.encoder.user_id_embeddings[:1]
    rows = rows_over(retriever, users=[UNKNOWN_USER])._replace(user_embeddings=row)
    after = retriever.with_rows(rows)
    assert scores(after, UNKNOWN_USER) == scores(retriever, UNKNOWN_USER)


def test_newer_vectors_shadow_those_of_the_index_and_new_items_are_found(
    retriever: Retriever,
) -> None:
    """One of the corpus, one that the base knows but does not return, one that it never knew."""
    corpus = set(scores(retriever, BUSY_USER))
    outside = next(item for item in ITEMS if item not in corpus)
    changed, new = ITEMS[20], 9_000_000
    assert changed in corpus
    rows = rows_over(retriever, items=[changed, outside, new])
    found = scores(retriever.with_rows(rows), BUSY_USER)
    position = int(retriever.encoder.users.positions([BUSY_USER])[0])
    vector = retriever.encoder.user_vectors(np.array([position]))[0]
    for item, expected in zip(rows.item_ids.tolist(), rows.item_vectors @ vector, strict=True):
        assert found[item] == pytest.approx(expected, abs=1e-6)
    assert set(found) == corpus | {outside, new}
    unchanged = corpus - {changed}
    assert {item: found[item] for item in unchanged} == {
        item: scores(retriever, BUSY_USER)[item] for item in unchanged
    }
    assert scores(retriever, BUSY_USER).keys() == corpus


def test_new_items_can_be_excluded_and_have_no_display(retriever: Retriever) -> None:
    new = [9_000_000, 9_000_001]
    after = retriever.with_rows(rows_over(retriever, items=new))
    answer = after.retrieve(UNKNOWN_USER, k=100)
    shown = {candidate.item_id: candidate.display for candidate in answer.candidates}
    assert shown[new[0]] == shown[new[1]] == {}
    left = after.retrieve(UNKNOWN_USER, k=100, exclude=[new[0], ITEMS[3]])
    assert set(shown) - set(item_ids(left)) == {new[0], ITEMS[3]} & set(shown)
    given = after.retrieve(UNKNOWN_USER, k=100, recent=[new[1]])
    assert given.degraded == ["unknown_user"]
    assert new[1] not in item_ids(given)


@pytest.mark.parametrize("kind", ["int", "str"])
def test_later_rows_win_and_earlier_ones_stay(tmp_path: Path, kind: IdKind) -> None:
    publish_live(tmp_path, tiny_checkpoint(kind=kind))
    retriever = Retriever.open(tmp_path)
    users, items = external_ids(kind, "user", 12), external_ids(kind, "item", 60)
    long: list[Id] = [9_000_000] if kind == "int" else ["item-with-a-long-name"]
    first = rows_over(retriever, users[:4], [*items[10:14], *long], seed=1)
    second = rows_over(retriever, users[2:6], items[12:16], seed=2)
    both = retriever.with_rows(first).with_rows(second)
    one, other = retriever.with_rows(first), retriever.with_rows(second)
    assert both.retrieve(users[0], 1).delta == 2
    for user in users[2:6]:
        assert _common(both, user, items[12:16]) == _common(other, user, items[12:16])
        assert _common(both, user, items[16:]) == _common(other, user, items[16:])
    for user in users[:2]:
        assert _common(both, user, items[10:12]) == _common(one, user, items[10:12])
        assert _common(both, user, long) == _common(one, user, long)


def _common(retriever: Retriever, user: Id, items: list[Id]) -> dict[Id, float]:
    found = scores(retriever, user)
    return {item: found[item] for item in items if item in found}


def test_written_deltas_are_applied_in_their_order(retriever: Retriever, tmp_path: Path) -> None:
    rows = [rows_over(retriever, [BUSY_USER], [ITEMS[n]], seed=n) for n in (20, 21)]
    deltas = [write(retriever, rows[0], 0, 4), write(retriever, rows[1], 4, 9)]
    after = retriever.with_deltas(deltas)
    memory = retriever.with_rows(rows[0]).with_rows(rows[1])
    assert scores(after, BUSY_USER) == scores(memory, BUSY_USER)
    step = retriever.with_deltas(deltas[:1]).with_deltas(deltas[1:])
    assert scores(step, BUSY_USER) == scores(after, BUSY_USER)
    assert after.overlay.delta == step.overlay.delta == deltas[1].mark
    assert after.overlay.newest_event_time_ms == CUT_MS + 9
    assert retriever.with_deltas([]).retrieve(BUSY_USER, 3) == retriever.retrieve(BUSY_USER, 3)
    for wrong in ([deltas[1]], [deltas[0], deltas[0]]):
        with pytest.raises(LineageError, match="deltas apply in their order"):
            retriever.with_deltas(wrong)
    with pytest.raises(LineageError, match="deltas apply in their order"):
        memory.with_deltas(read_deltas(tmp_path, retriever.base))


def test_a_search_does_not_depend_on_how_the_rows_came(retriever: Retriever) -> None:
    """Known items, new ones, known ones again: as if all had been laid at once."""
    parts = [
        rows_over(retriever, [BUSY_USER], [ITEMS[20], ITEMS[30]], seed=1),
        rows_over(retriever, [], [ITEMS[20], 9_000_000, 9_000_005], seed=2),
        rows_over(retriever, [], [ITEMS[21], 9_000_000], seed=3),
        rows_over(retriever, [BUSY_USER], [9_000_002], seed=4),
        rows_over(retriever, [BUSY_USER], seed=5),
    ]
    after, merged = retriever, rows_over(retriever)
    for part in parts:
        after, merged = after.with_rows(part), merge_rows(merged, part)
        at_once = retriever.with_rows(merged)
        for user in (BUSY_USER, USERS[4]):
            found = after.retrieve(user, k=100, include_seen=True).candidates
            assert found == at_once.retrieve(user, k=100, include_seen=True).candidates
        assert len(after.index) == len(at_once.index)


def test_a_delta_without_items_leaves_the_index_alone(retriever: Retriever) -> None:
    first = retriever.with_rows(rows_over(retriever, [BUSY_USER], [ITEMS[20]]))
    second = first.with_rows(rows_over(retriever, [USERS[4]], seed=1))
    assert second.index is first.index


def test_a_delta_of_another_base_is_refused(retriever: Retriever, tmp_path: Path) -> None:
    delta = write(retriever, rows_over(retriever, [BUSY_USER]), 0, 4)
    publish_live(tmp_path, tiny_checkpoint(seed=2))
    with pytest.raises(LineageError, match="'g-000002'"):
        Retriever.open(tmp_path).with_deltas([delta])


def test_rows_that_do_not_fit_are_refused(retriever: Retriever) -> None:
    good = rows_over(retriever, [BUSY_USER], [ITEMS[0]])
    texts = np.array([b"a"])
    for bad in (
        good._replace(user_embeddings=np.zeros((1, 99), np.float32)),
        good._replace(item_vectors=np.zeros((1, 99), np.float32)),
        good._replace(user_ids=texts),
        good._replace(item_ids=texts),
    ):
        with pytest.raises(CorruptArtifact, match="nothing was applied"):
            retriever.with_rows(bad)


def test_the_native_index_is_shadowed_too(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    checkpoint = tiny_checkpoint(num_items=2000, num_users=30)
    publish(checkpoint, store, index=IndexSettings(engine="faiss_hnsw"))
    retriever = Retriever.open(tmp_path, "g-000001")
    users, items = external_ids("int", "user", 30), external_ids("int", "item", 2000)
    rows = rows_over(retriever, users[:2], [*items[5:300], 9_000_000])
    after = retriever.with_rows(rows)
    found = after.retrieve(users[5], k=500, include_seen=True)
    assert len(set(item_ids(found))) == 500
    position = retriever.encoder.users.positions([users[5]])
    vector = retriever.encoder.user_vectors(position)[0]
    true = dict(zip(rows.item_ids.tolist(), (rows.item_vectors @ vector).tolist(), strict=True))
    for candidate in found.candidates:
        expected = true.get(candidate.item_id, candidate.score)
        assert candidate.score == pytest.approx(expected, abs=1e-6)
    best = max(true, key=lambda item: true[item])
    assert best in item_ids(found)
