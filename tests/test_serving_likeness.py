"""Items like others, and why a user gets an item: held against the towers themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving_project import UNKNOWN_USER, USERS, RunningServer, running_server, write_project
from test_serving_retriever import publish_live
from tiny_checkpoint import external_ids, tiny_checkpoint
from twotower.data.ids import Id
from twotower.publishing.day_items import add_items, withdraw_items
from twotower.publishing.encoding import Encoder
from twotower.publishing.item_register import DayItem
from twotower.publishing.store import ModelStore
from twotower.serving.day import DayFollower, LogReader, NoCounts
from twotower.serving.explaining import explain
from twotower.serving.messages import Condition, ExplainRequest
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings

NEW, GONE = 9_000_001, 655
UNOFFERED = external_ids("int", "item", 60)[0]
USER = USERS[5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A live generation with popularity, one item of the day and one that is withdrawn."""
    folder = tmp_path_factory.mktemp("likeness")
    data_path = folder / "twotower-data"
    publish_live(data_path, tiny_checkpoint(has_rich_items=True, popularity_weight=0.5))
    generation = ModelStore(data_path).open()
    encoder = Encoder.of(generation)
    features = {"genre": "genre 2", "price": 3}
    add_items(data_path, generation, encoder, [DayItem(item_id=NEW, features=features)])
    withdraw_items(data_path, encoder, [GONE])
    return folder


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Retriever:
    data_path = folder / "twotower-data"
    day = DayFollower(data_path, ServingSettings(), NoCounts(), LogReader(data_path, ["click"]))
    return day.catch_up(Retriever.open(data_path))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running_server(write_project(folder)) as running:
        yield running


def directions(retriever: Retriever) -> dict[Id, Any]:
    """Unit vectors of everything that is searched, without popularity, from the index itself."""
    found = retriever.retrieve(UNKNOWN_USER, 100, include_seen=True).candidates
    ids = [candidate.item_id for candidate in found]
    vectors = retriever.space.vectors(retriever.space.numbers_of(ids))[:, :-1]
    return dict(zip(ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))


def similar(server: RunningServer, *item_ids: Id, **more: object) -> Any:
    reply = server.ask("POST", "/v1/similar", {"item_ids": item_ids, **more})
    assert reply.status == 200, reply.body
    return reply.json()


def test_the_vectors_are_those_that_are_searched(retriever: Retriever) -> None:
    query = np.random.default_rng(0).normal(size=(1, 9)).astype(np.float32)
    found = retriever.index.search(query, 60)
    vectors = retriever.space.vectors(found.ids[0][found.ids[0] >= 0])
    np.testing.assert_allclose(vectors @ query[0], found.scores[0, : len(vectors)], rtol=1e-5)
    assert NEW in retriever.decode_items(found.ids[0, : len(vectors)])


@pytest.mark.parametrize("given", [[650], [NEW], [UNOFFERED], [GONE], [642, 643, NEW]])
def test_similar_items_are_the_nearest_by_cosine(
    server: RunningServer, retriever: Retriever, given: list[Id]
) -> None:
    every = directions(retriever)
    mine = retriever.space.directions(retriever.space.numbers_of(given))[:, :-1].mean(axis=0)
    query = mine / np.linalg.norm(mine)
    expected = sorted((i for i in every if i not in given), key=lambda i: -float(every[i] @ query))
    answer = similar(server, *given, k=8)
    assert [candidate["item_id"] for candidate in answer["candidates"]] == expected[:8]
    assert answer["degraded"] is None
    for candidate in answer["candidates"]:
        assert candidate["score"] == pytest.approx(every[candidate["item_id"]] @ query, abs=1e-5)
    assert GONE not in [
        candidate["item_id"] for candidate in similar(server, *given, k=100)["candidates"]
    ]


def test_similar_items_take_filters_and_exclusions(server: RunningServer) -> None:
    plain = [c["item_id"] for c in similar(server, 650, k=60)["candidates"]]
    less = similar(server, 650, k=60, exclude=plain[:4])["candidates"]
    assert [c["item_id"] for c in less] == plain[4:]
    wanted = [{"feature": "genre", "any_of": ["genre 2"]}]
    kept = similar(server, 650, k=60, filter=wanted, display=True)["candidates"]
    assert 0 < len(kept) < len(plain)
    assert NEW in [c["item_id"] for c in kept]
    assert {c["display"]["genre"] for c in kept} == {"genre 2"}


def test_the_server_filters_and_names_what_it_cannot(
    server: RunningServer, retriever: Retriever
) -> None:
    wanted = {"feature": "genre", "any_of": ["genre 3", "rare"]}
    body = {"user_id": USER, "k": 50, "filter": [wanted], "include_seen": True}
    answer = server.ask("POST", "/v1/retrieve", body).json()
    conditions = [Condition(feature="genre", any_of=["genre 3"])]
    expected = retriever.retrieve(USER, 50, conditions=conditions, include_seen=True).candidates
    assert [c["item_id"] for c in answer["candidates"]] == [c.item_id for c in expected]
    assert answer["degraded"][-1] == "filter:genre=unseen"
    for given, path in (
        ({"feature": "gnere"}, "$.filter[1].feature"),
        ({"feature": "genre", "at_least": 1}, "$.filter[1]"),
        ({"feature": "genre", "any": []}, "$.filter[1].any"),
        ({"any_of": []}, "$.filter[1]"),
    ):
        reply = server.ask("POST", "/v1/retrieve", {"user_id": 1, "filter": [wanted, given]})
        assert reply.status == 422
        assert [fault["path"] for fault in reply.json()["errors"]] == [path]


def test_unknown_items_are_told_or_not_found(server: RunningServer) -> None:
    assert similar(server, 650, 1)["degraded"] == ["unknown_items"]
    assert similar(server, 650, 1)["candidates"] == similar(server, 650)["candidates"]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/similar", {"item_ids": [1]}),
        ("/v1/explain", {"user_id": USER, "item_id": 1}),
    ]
    for path, body in bodies:
        assert server.ask("POST", path, body).status == 404
    bodies = [
        ("/v1/similar", {"item_ids": []}),
        ("/v1/similar", {"item_ids": ["x"]}),
        ("/v1/similar", {"item_ids": [650], "filter": [{"feature": "gnere"}]}),
        ("/v1/explain", {"user_id": "x", "item_id": 650}),
        ("/v1/explain", {"user_id": USER, "item_id": 650, "features": {"ciity": 1}}),
    ]
    for path, body in bodies:
        reply = server.ask("POST", path, body)
        assert (reply.status, len(reply.json()["errors"])) == (422, 1)


def explained(retriever: Retriever, item_id: Id, user_id: Id = USER, **more: Any) -> dict[str, Any]:
    found = explain(retriever, ExplainRequest(user_id=user_id, item_id=item_id, **more))
    assert found is not None
    return found


def test_score_and_rank_are_those_of_the_list(retriever: Retriever) -> None:
    found = retriever.retrieve(USER, 60, include_seen=True).candidates
    visible = {c.item_id for c in retriever.retrieve(USER, 60).candidates}
    for candidate in found:
        why = explained(retriever, candidate.item_id)
        assert (why["score"], why["rank"]) == (candidate.score, candidate.rank)
        assert why["hidden_because"] == ([] if candidate.item_id in visible else ["seen"])
    assert (
        "seen"
        in explained(retriever, found[0].item_id, recent=[found[0].item_id])["hidden_because"]
    )


def test_what_no_answer_holds_says_why(retriever: Retriever) -> None:
    for item_id, reason in ((GONE, "withdrawn"), (UNOFFERED, "not_in_corpus")):
        why = explained(retriever, item_id, UNKNOWN_USER)
        assert why["hidden_because"] == [reason]
        assert why["rank"] is None
        assert np.isfinite(why["score"])


def test_the_nearest_clicks_are_nearest_by_cosine(retriever: Retriever) -> None:
    clicks = [642, 643, 644, NEW]
    every = directions(retriever)
    why = explained(retriever, 650, recent=clicks, num_clicks=3, display=True)
    expected = sorted(clicks, key=lambda i: -float(every[i] @ every[650]))[:3]
    assert [click["item_id"] for click in why["nearest_clicks"]] == expected
    for click in why["nearest_clicks"]:
        assert click["cosine"] == pytest.approx(every[click["item_id"]] @ every[650], abs=1e-5)
    assert explained(retriever, 650, recent=[])["nearest_clicks"] == []


def score(retriever: Retriever, item_id: Id, user_id: Id, **more: Any) -> float:
    found = retriever.retrieve(user_id, 60, include_seen=True, **more).candidates
    return next(candidate.score for candidate in found if candidate.item_id == item_id)


def test_a_contribution_is_what_is_lost_without_it(retriever: Retriever) -> None:
    plain = score(retriever, 650, USER)
    why = explained(retriever, 650)["user"]
    assert set(why["features"]) == {"city", "age", "tags", "joined"}
    for name, contribution in why["features"].items():
        lost = plain - score(retriever, 650, USER, features={name: None})
        assert contribution == pytest.approx(lost, abs=1e-6)
    assert why["recent"] == pytest.approx(plain - score(retriever, 650, USER, recent=[]), abs=1e-6)
    assert min(map(abs, [why["id"], why["recent"], why["features"]["city"]])) > 1e-4
    nobody = explained(retriever, 650, UNKNOWN_USER)["user"]
    assert nobody == {"id": 0.0, "recent": 0.0, "features": dict.fromkeys(why["features"], 0.0)}


def test_contributions_of_an_item_are_those_of_its_own_features(
    folder: Path, retriever: Retriever
) -> None:
    why = explained(retriever, NEW)["item"]
    assert set(why["features"]) == {"genre", "price", "length", "labels", "added"}
    assert min(abs(why["features"][name]) for name in ("genre", "price")) > 1e-4
    assert [why["features"][name] for name in ("length", "labels", "added")] == [0.0] * 3
    assert why["id"] == 0.0  # no row of its own yet
    encoder = retriever.encoder
    user = retriever.users.asking(USER, {}, None).vector(encoder)
    vectors = [
        encoder.item_vector(encoder.item_embedding(-1), encoder.encode_item(features),
                            encoder.popularity_coordinate(-1))
        for features in ({"genre": "genre 2", "price": 3}, {"price": 3})
    ]  # fmt: skip
    whole, without = (float((user @ vector.T)[0, 0]) for vector in vectors)
    assert why["features"]["genre"] == pytest.approx(whole - without, abs=1e-6)
    assert why["popularity"] == pytest.approx(float(vectors[0][0, -1]), abs=1e-6)
    known = explained(retriever, 650)["item"]
    assert abs(known["id"]) > 1e-4


def test_the_server_explains_as_documented(server: RunningServer, retriever: Retriever) -> None:
    body = {"user_id": USER, "item_id": 650, "display": True}
    reply = server.ask("POST", "/v1/explain", body)
    assert reply.status == 200, reply.body
    answer = reply.json()
    expected = explained(retriever, 650)
    assert (answer["rank"], answer["hidden_because"]) == (
        expected["rank"],
        expected["hidden_because"],
    )
    assert answer["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert answer["user"]["features"].keys() == expected["user"]["features"].keys()
    assert all("display" in click for click in answer["nearest_clicks"])
