"""What users get: whole answers of one generation, without what they saw, without torch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tiny_checkpoint import CUT_MS, external_ids, tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.data.ids import Id, IdKind
from twotower.errors import ConfigError, CorruptArtifact, DataError, NotReady
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Answer, Retriever

NUM_CORPUS = 57


def publish_live(data_path: Path, checkpoint: Checkpoint) -> str:
    store = ModelStore(data_path)
    generation = publish(checkpoint, store, index=IndexSettings())
    store.activate(generation.name)
    return generation.name


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("retriever")
    publish_live(path, tiny_checkpoint())
    return path


@pytest.fixture(scope="module")
def retriever(data_path: Path) -> Retriever:
    return Retriever.open(data_path)


def item_ids(answer: Answer) -> list[Id]:
    return [candidate.item_id for candidate in answer.candidates]


def seen_by(retriever: Retriever, user: Id) -> set[Id]:
    position = int(retriever.encoder.users.positions([user])[0])
    return set(retriever.encoder.items.decode(retriever.encoder.seen.list_at(position)))


USERS = external_ids("int", "user", 12)
BUSY_USER = USERS[3]
UNKNOWN_USER = 1_000_001


def test_every_answer_names_its_generation(retriever: Retriever) -> None:
    for user in (*USERS, UNKNOWN_USER):
        answer = retriever.retrieve(user, k=5)
        assert (answer.generation, answer.sequence) == ("g-000001", 1)
        assert [candidate.rank for candidate in answer.candidates] == [1, 2, 3, 4, 5]


def test_candidates_are_items_of_the_log_in_the_order_of_the_true_scores(
    retriever: Retriever,
) -> None:
    encoder = retriever.encoder
    user = int(encoder.users.positions([BUSY_USER])[0])
    answer = retriever.retrieve(BUSY_USER, k=NUM_CORPUS, include_seen=True)
    positions = encoder.items.positions(item_ids(answer))
    true = (encoder.item_vectors(positions) @ encoder.user_vectors(np.array([user])).T)[:, 0]
    np.testing.assert_allclose([c.score for c in answer.candidates], true, atol=1e-5)
    assert (np.diff(true) <= 1e-6).all()
    assert len(set(positions.tolist())) == NUM_CORPUS
    assert all(candidate.display["genre"] for candidate in answer.candidates)


def test_seen_items_never_come_back_and_k_are_found_still(retriever: Retriever) -> None:
    for user in USERS:
        seen = seen_by(retriever, user)
        unseen = NUM_CORPUS - len(seen & set(item_ids(everything(retriever, user))))
        answer = retriever.retrieve(user, k=unseen)
        assert len(answer.candidates) == unseen
        assert not seen & set(item_ids(answer))
    busy = seen_by(retriever, BUSY_USER)
    assert busy
    assert busy & set(item_ids(everything(retriever, BUSY_USER)))


def everything(retriever: Retriever, user: Id) -> Answer:
    return retriever.retrieve(user, k=60, include_seen=True)


def test_k_above_the_corpus_gives_what_there_is(retriever: Retriever) -> None:
    assert len(everything(retriever, UNKNOWN_USER).candidates) == NUM_CORPUS
    assert len(retriever.retrieve(UNKNOWN_USER, k=10**9).candidates) == NUM_CORPUS


def test_all_items_filtered_gives_a_defined_empty_answer(retriever: Retriever) -> None:
    answer = retriever.retrieve(BUSY_USER, k=5, exclude=external_ids("int", "item", 60))
    assert answer.candidates == []
    assert answer.generation == "g-000001"


def test_excluded_items_are_not_returned(retriever: Retriever) -> None:
    best = item_ids(retriever.retrieve(BUSY_USER, k=3))
    answer = retriever.retrieve(BUSY_USER, k=3, exclude=[best[0], best[2], 424_242])
    assert item_ids(answer)[0] == best[1]
    assert len(answer.candidates) == 3


def test_recent_clicks_are_shown_newest_first(retriever: Retriever) -> None:
    encoder = retriever.encoder
    position = int(encoder.users.positions([BUSY_USER])[0])
    clicks = encoder.items.decode(encoder.recent.list_at(position))
    shown = retriever.retrieve(BUSY_USER, k=1).recent
    assert [click.item_id for click in shown] == clicks[::-1]
    assert len(shown) == 4
    assert all(click.display for click in shown)


def test_given_clicks_replace_the_stored_ones_and_are_not_recommended(
    retriever: Retriever,
) -> None:
    before = retriever.retrieve(BUSY_USER, k=20)
    clicked = item_ids(before)[:3]
    after = retriever.retrieve(BUSY_USER, k=20, recent=clicked)
    assert [click.item_id for click in after.recent] == clicked[::-1]
    assert not set(clicked) & set(item_ids(after))
    scores = {candidate.item_id: candidate.score for candidate in before.candidates}
    moved = [abs(scores[c.item_id] - c.score) for c in after.candidates if c.item_id in scores]
    assert max(moved) > 1e-3
    assert set(clicked) <= set(
        item_ids(retriever.retrieve(BUSY_USER, k=60, recent=clicked, include_seen=True))
    )


def test_clicks_on_unknown_items_are_reported(retriever: Retriever) -> None:
    answer = retriever.retrieve(BUSY_USER, k=2, recent=[424_242])
    assert answer.degraded[-1] == "recent:unknown_items"
    assert answer.recent == []


# -- unknown users and features


def test_an_unknown_user_gets_a_whole_answer_that_says_so(retriever: Retriever) -> None:
    answer = retriever.retrieve(UNKNOWN_USER, k=10)
    assert answer.degraded == ["unknown_user"]
    assert len(answer.candidates) == 10
    assert answer.recent == []


def test_unknown_users_with_different_features_get_different_answers(
    retriever: Retriever,
) -> None:
    given = [None, {"city": "Oslo"}, {"city": "Lima"}, {"age": 60}, {"tags": ["c"]}]
    answers = [retriever.retrieve(UNKNOWN_USER, k=20, features=features) for features in given]
    scores = [[candidate.score for candidate in answer.candidates] for answer in answers]
    for one, other in itertools.combinations(scores, 2):
        assert np.abs(np.array(one) - np.array(other)).max() > 1e-4
    named = ["city", "age", "tags", "joined"]
    for features, answer in zip(given, answers, strict=True):
        missing = [f"feature:{name}=missing" for name in named if name not in (features or named)]
        assert answer.degraded == ["unknown_user", *missing]


def test_given_features_win_and_the_others_keep_their_stored_values(
    retriever: Retriever,
) -> None:
    encoder = retriever.encoder
    user = USERS[1]
    stored = {"city": "Lima", "age": 21.0, "tags": "c", "joined": CUT_MS - 86_400_000}
    position = int(encoder.users.positions([user])[0])
    profile, _ = encoder.profile(position, {})
    whole, missing, unseen = encoder.user_features.encode_one(stored, CUT_MS)
    assert (missing, unseen) == ([], [])
    for one, other in zip(profile, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    plain = retriever.retrieve(user, k=5)
    assert retriever.retrieve(user, k=5, features=stored).candidates == plain.candidates
    assert retriever.retrieve(user, k=5, features={"city": "Lima"}).candidates == plain.candidates
    for name, value in {"city": "Oslo", "age": 55.0, "tags": "a|b", "joined": 0}.items():
        changed, notes = encoder.profile(position, {name: value})
        expected = encoder.user_features.encode_one(stored | {name: value}, CUT_MS)[0]
        for one, other in zip(changed, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        assert notes == []
        assert retriever.retrieve(user, k=5, features={name: value}) != plain


def test_a_feature_given_as_null_is_forgotten(retriever: Retriever) -> None:
    answer = retriever.retrieve(USERS[1], k=5, features={"city": None})
    assert answer.degraded == ["feature:city=missing"]
    assert answer.candidates != retriever.retrieve(USERS[1], k=5).candidates


def test_a_feature_that_nobody_knows_is_reported_until_the_request_gives_it(
    retriever: Retriever,
) -> None:
    lacks_city, lacks_tags = USERS[3], USERS[2]
    assert retriever.retrieve(lacks_city, k=1).degraded == ["feature:city=missing"]
    assert retriever.retrieve(lacks_tags, k=1).degraded == ["feature:tags=missing"]
    given = retriever.retrieve(lacks_city, k=1, features={"city": "Oslo"})
    assert given.degraded == []
    unseen = retriever.retrieve(lacks_city, k=1, features={"city": "Atlantis"})
    assert unseen.degraded == ["feature:city=unseen"]


def test_a_value_never_seen_is_reported(retriever: Retriever) -> None:
    answer = retriever.retrieve(USERS[1], k=5, features={"city": "Atlantis", "age": 30})
    assert answer.degraded == ["feature:city=unseen"]


def test_an_unknown_feature_is_refused_with_a_suggestion(retriever: Retriever) -> None:
    with pytest.raises(ConfigError, match=r"'ciity'; known: .*did you mean 'city'"):
        retriever.retrieve(UNKNOWN_USER, features={"ciity": "Oslo"})


# -- IDs


@pytest.mark.parametrize("bad", ["abc", "", 10**30, True, 1.5, None])
def test_an_id_of_the_wrong_kind_is_refused(retriever: Retriever, bad: Id) -> None:
    with pytest.raises(DataError):
        retriever.retrieve(bad, k=1)


def test_text_that_is_an_integer_is_that_user(retriever: Retriever) -> None:
    assert retriever.retrieve("697", k=5) == retriever.retrieve(697, k=5)


def test_k_must_be_positive(retriever: Retriever) -> None:
    with pytest.raises(ConfigError, match="k of at least 1"):
        retriever.retrieve(697, k=0)


def test_text_ids(tmp_path: Path) -> None:
    publish_live(tmp_path, tiny_checkpoint(kind="str"))
    retriever = Retriever.open(tmp_path)
    answer = retriever.retrieve("user-003", k=4)
    assert answer.degraded == ["feature:city=missing"]
    assert all(str(item).startswith("item-") for item in item_ids(answer))
    for unknown in ("user-0030", "user-00", "Zoë", "x" * 5000):
        assert retriever.retrieve(unknown, k=1).degraded == ["unknown_user"]
    assert retriever.retrieve("user-003", exclude=item_ids(answer)) != answer


# -- generations


def test_the_retriever_keeps_its_generation_while_another_goes_live(tmp_path: Path) -> None:
    publish_live(tmp_path, tiny_checkpoint(seed=1))
    old = Retriever.open(tmp_path)
    before = old.retrieve(697, k=10)
    publish_live(tmp_path, tiny_checkpoint(seed=2))
    new = Retriever.open(tmp_path)
    assert old.retrieve(697, k=10) == before
    assert (new.generation, new.sequence) == ("g-000002", 2)
    assert new.retrieve(697, k=10).candidates != before.candidates
    ModelStore(tmp_path).roll_back()
    back = Retriever.open(tmp_path).retrieve(697, k=10)
    assert (back.generation, back.sequence) == ("g-000001", 3)
    assert back.candidates == before.candidates


def test_a_named_generation_says_whether_it_is_live(tmp_path: Path) -> None:
    publish_live(tmp_path, tiny_checkpoint(seed=1))
    publish_live(tmp_path, tiny_checkpoint(seed=2))
    assert Retriever.open(tmp_path, "g-000002").sequence == 2
    older = Retriever.open(tmp_path, "g-000001").retrieve(697, k=1)
    assert (older.generation, older.sequence) == ("g-000001", None)


def test_nothing_published_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReady):
        Retriever.open(tmp_path)


def test_a_damaged_generation_is_not_loaded(tmp_path: Path) -> None:
    name = publish_live(tmp_path, tiny_checkpoint())
    path = tmp_path / "generations" / name / "index" / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"index/vectors\.npy"):
        Retriever.open(tmp_path)


@pytest.mark.parametrize("kind", ["int", "str"])
def test_the_same_request_gives_the_same_bytes_in_another_process(
    tmp_path: Path, kind: IdKind
) -> None:
    publish_live(tmp_path, tiny_checkpoint(kind=kind))
    user = external_ids(kind, "user", 12)[3]
    code = (
        "import sys, pathlib, msgspec\n"
        "from twotower.serving.retriever import Retriever\n"
        "answer = Retriever.open(pathlib.Path(sys.argv[1])).retrieve(sys.argv[2], 7)\n"
        "sys.stdout.buffer.write(msgspec.json.encode(answer))\n"
        "heavy = {'torch', 'polars', 'pyarrow', 'onnx', 'scipy', 'safetensors', 'pandas'}\n"
        "ours = {'twotower.model', 'twotower.training', 'twotower.checkpoint'}\n"
        "assert not (heavy | ours) & set(sys.modules), (heavy | ours) & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(user)],
        capture_output=True,
        check=False,
        env={"PYTHONHASHSEED": "7"},
    )
    assert done.stderr == b""
    here = Retriever.open(tmp_path).retrieve(user, 7)
    assert done.stdout == msgspec.json.encode(here)
