"""Conditions on item features: what they let through, held against the readable features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from test_serving_retriever import publish_live
from tiny_checkpoint import CUT_MS, external_ids, rich_items, tiny_checkpoint
from twotower.data.ids import Id
from twotower.publishing.day_items import add_items, withdraw_items
from twotower.publishing.encoding import Encoder
from twotower.publishing.item_register import DayItem
from twotower.publishing.store import ModelStore
from twotower.serving.day import DayFollower, LogReader, NoCounts
from twotower.serving.item_filter import WrongCondition
from twotower.serving.messages import Condition
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings

DAY_MS = 86_400_000
USER = 699
Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filter")
    publish_live(folder / "twotower-data", tiny_checkpoint(has_rich_items=True))
    return folder


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Retriever:
    return Retriever.open(folder / "twotower-data")


@pytest.fixture(scope="module")
def features(retriever: Retriever) -> dict[Id, Row]:
    """The readable features of every item by its ID."""
    rows = rich_items(60).to_dicts()
    return dict(zip(retriever.encoder.items.decode(range(60)), rows, strict=True))  # type: ignore[arg-type]


def condition(**given: object) -> Condition:
    return msgspec.convert(given, Condition)


def ids(retriever: Retriever, *conditions: Condition, k: int = 60) -> list[Id]:
    answer = retriever.retrieve(USER, k, conditions=conditions, include_seen=True)
    return [candidate.item_id for candidate in answer.candidates]


def genre(row: Row) -> str | None:
    """As the model knows it."""
    return None if row["genre"] == "rare" else row["genre"]


def labels(row: Row) -> set[str]:
    return set(filter(None, row["labels"].split("|")))


def known(value: float | None, test: Callable[[float], bool]) -> bool:
    return value is not None and test(value)


CASES: list[tuple[Row, Callable[[Row], bool]]] = [
    ({"feature": "genre"}, lambda r: genre(r) is not None),
    ({"feature": "genre", "any_of": ["genre 1"]}, lambda r: genre(r) == "genre 1"),
    (
        {"feature": "genre", "any_of": ["genre 1", "genre 3", None]},
        lambda r: genre(r) in ("genre 1", "genre 3", None),
    ),
    ({"feature": "genre", "any_of": []}, lambda r: False),
    ({"feature": "genre", "none_of": ["genre 1"]}, lambda r: genre(r) != "genre 1"),
    ({"feature": "genre", "none_of": [None]}, lambda r: genre(r) is not None),
    (
        {"feature": "genre", "any_of": ["genre 1", "genre 2"], "none_of": ["genre 2"]},
        lambda r: genre(r) == "genre 1",
    ),
    ({"feature": "labels"}, lambda r: bool(labels(r))),
    ({"feature": "labels", "any_of": ["a", "c"]}, lambda r: bool(labels(r) & {"a", "c"})),
    ({"feature": "labels", "none_of": ["b"]}, lambda r: "b" not in labels(r)),
    ({"feature": "labels", "any_of": [None]}, lambda r: not labels(r)),
    ({"feature": "price"}, lambda r: r["price"] is not None),
    ({"feature": "price", "at_least": 1}, lambda r: known(r["price"], lambda x: x >= 1)),
    ({"feature": "price", "at_most": "0.5"}, lambda r: known(r["price"], lambda x: x <= 0.5)),
    (
        {"feature": "price", "at_least": -0.35, "at_most": 2.05},
        lambda r: known(r["price"], lambda x: -0.35 <= x <= 2.05),
    ),
    ({"feature": "length"}, lambda r: True),
    (
        {"feature": "added", "at_least": CUT_MS - 20 * DAY_MS},
        lambda r: known(r["added"], lambda t: t >= CUT_MS - 20 * DAY_MS),
    ),
    (
        {"feature": "added", "at_most": CUT_MS - 30.5 * DAY_MS},
        lambda r: known(r["added"], lambda t: t <= CUT_MS - 30.5 * DAY_MS),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "meets"), CASES, ids=[str(given) for given, _ in CASES])
def test_an_answer_holds_the_best_of_what_meets_the_condition(
    retriever: Retriever, features: dict[Id, Row], given: Row, meets: Callable[[Row], bool]
) -> None:
    expected = [item_id for item_id in ids(retriever) if meets(features[item_id])]
    assert len(expected) < 57 or given == {"feature": "length"}
    assert ids(retriever, condition(**given)) == expected
    assert ids(retriever, condition(**given), k=3) == expected[:3]


def test_all_conditions_must_hold(retriever: Retriever, features: dict[Id, Row]) -> None:
    conditions = [condition(feature="price", at_least=1), condition(feature="genre")]
    found = ids(retriever, *conditions)
    assert found == [
        item_id
        for item_id in ids(retriever)
        if (features[item_id]["price"] or 0) >= 1 and genre(features[item_id])
    ]
    assert found != ids(retriever, conditions[0])


def test_a_filter_adds_to_what_is_seen_and_excluded(retriever: Retriever) -> None:
    allowed = condition(feature="genre", any_of=["genre 1", "genre 2"])
    every = ids(retriever, allowed)
    unseen = [
        candidate.item_id
        for candidate in retriever.retrieve(USER, 60, conditions=[allowed]).candidates
    ]
    assert 0 < len(unseen) < len(every)
    assert [item_id for item_id in every if item_id in unseen] == unseen
    rest = retriever.retrieve(
        USER, 60, conditions=[allowed], exclude=every[:3], include_seen=True
    ).candidates
    assert [candidate.item_id for candidate in rest] == every[3:]


def test_a_value_that_was_never_admitted_is_answered_on_the_safe_side(
    retriever: Retriever, features: dict[Id, Row]
) -> None:
    rare = next(item_id for item_id, row in features.items() if row["genre"] == "rare")
    wanted = condition(feature="genre", any_of=["rare", "genre 1"])
    unwanted = condition(feature="genre", none_of=["rare"])
    for asked in (wanted, unwanted):
        found = retriever.find(USER, 60, conditions=[asked], include_seen=True)
        assert found.degraded == ["filter:genre=unseen"]
    assert set(ids(retriever, wanted)) == set(
        ids(retriever, condition(feature="genre", any_of=["genre 1"]))
    )
    assert rare not in ids(retriever, unwanted)
    assert all(genre(features[item_id]) for item_id in ids(retriever, unwanted))


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"feature": "gnere"}, "[0].feature", "did you mean 'genre'?"),
        ({"feature": "genre", "at_least": 1}, "[0]", "any_of and none_of"),
        ({"feature": "price", "any_of": [1]}, "[0]", "at_least and at_most"),
        ({"feature": "length", "at_least": 1}, "[0]", "quantile"),
        ({"feature": "length", "none_of": []}, "[0]", "quantile"),
        ({"feature": "price", "at_most": "cheap"}, "[0]", "'cheap'"),
        ({"feature": "added", "at_most": "yesterday"}, "[0]", "'yesterday'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    retriever: Retriever, given: Row, place: str, words: str
) -> None:
    with pytest.raises(WrongCondition, match="nothing was searched") as refused:
        retriever.find(USER, 5, conditions=[condition(**given)])
    assert refused.value.place == place
    assert words in str(refused.value)


def test_items_of_the_day_are_filtered_by_the_features_that_they_came_with(
    folder: Path, retriever: Retriever
) -> None:
    data_path = folder / "twotower-data"
    generation = ModelStore(data_path).open()
    encoder = Encoder.of(generation)
    unoffered = external_ids("int", "item", 60)[0]  # known to the model, and not in the corpus
    assert unoffered not in ids(retriever)
    given: dict[Id, Row] = {
        9_000_001: {"genre": "genre 1", "price": 3},
        9_000_002: {"genre": "genre 2"},
        9_000_003: {},
        unoffered: {"genre": "genre 1", "labels": ["a"]},
    }
    items = [DayItem(item_id=item_id, features=row) for item_id, row in given.items()]
    add_items(data_path, generation, encoder, items)
    withdraw_items(data_path, encoder, [9_000_002])
    day = DayFollower(data_path, ServingSettings(), NoCounts(), LogReader(data_path, ["click"]))
    newer = day.catch_up(retriever)

    def added(**wanted: object) -> set[Id]:
        return set(ids(newer, condition(**wanted), k=100)) & set(given)

    assert added(feature="genre", any_of=["genre 1"]) == {9_000_001, unoffered}
    assert added(feature="genre", any_of=["genre 2"]) == set()
    assert added(feature="genre", any_of=[None]) == {9_000_003}
    assert added(feature="price", at_least=2.9, at_most=3.1) == {9_000_001}
    assert added(feature="labels", any_of=["a"]) == {unoffered}
    again = newer.with_deltas([])
    assert ids(again, condition(feature="price", at_least=2.9)) == ids(
        newer, condition(feature="price", at_least=2.9)
    )


def test_a_filter_that_is_remembered_never_changes(retriever: Retriever) -> None:
    given = [condition(feature="genre", any_of=["genre 1"])]
    mask = retriever.filter.allowed(given).mask
    assert mask is not None
    assert not mask.flags.writeable, "else an index works it out anew for every request"
    assert retriever.filter.allowed(given).mask is mask
