"""Each gate refuses what it is there for, and lets a good model pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from twotower.errors import GateRefused
from twotower.publishing.gates import (
    AnnRecall,
    CorpusKept,
    Gate,
    Measured,
    NotCollapsed,
    TowersAgree,
    UnitLength,
    check_finite,
    default_gates,
    mean_pairwise_cosine,
)
from twotower.publishing.manifest import GateResult, IndexEntry, Manifest, Trained, Window
from twotower.publishing.settings import GateSettings


def unit(rng: np.random.Generator, count: int, dim: int = 16) -> npt.NDArray[np.float32]:
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def manifest_with_corpus(num_items: int) -> Manifest:
    return Manifest(
        name="g-000001",
        kind="full",
        parent=None,
        created_at="",
        window=Window(),
        trained=Trained(),
        vector_dim=16,
        counts={"corpus": num_items},
        index=IndexEntry(engine="exact", num_items=num_items),
    )


@pytest.fixture
def good() -> Measured:
    rng = np.random.default_rng(0)
    items, users = unit(rng, 200), unit(rng, 50)
    return Measured(
        item_vectors=items,
        user_vectors=users,
        trainer_item_vectors=items[:100] + np.float32(1e-7),
        trainer_user_vectors=users - np.float32(1e-7),
        ann_recall_at_100=0.97,
        parent=manifest_with_corpus(210),
    )


def test_a_good_model_passes_every_gate(good: Measured) -> None:
    results = [gate.measure(good) for gate in default_gates(GateSettings())]
    assert [result.gate for result in results if not result.passed] == []
    assert len({result.gate for result in results}) == len(results)


def bad_models(good: Measured) -> dict[str, Measured]:
    same = np.repeat(good.item_vectors[:1], 200, axis=0)
    nearly = same + 0.02 * good.item_vectors
    nearly /= np.linalg.norm(nearly, axis=1, keepdims=True)
    return {
        "zero tower": dataclasses.replace(good, item_vectors=0 * good.item_vectors),
        "twice as long": dataclasses.replace(good, user_vectors=2 * good.user_vectors),
        "one vector for all items": dataclasses.replace(good, item_vectors=same),
        "nearly one vector": dataclasses.replace(good, item_vectors=nearly),
        "one vector for all users": dataclasses.replace(good, user_vectors=same[:50]),
        "poor index": dataclasses.replace(good, ann_recall_at_100=0.9499),
        "users shifted by one": dataclasses.replace(
            good, trainer_user_vectors=np.roll(good.user_vectors, 1, axis=0)
        ),
        "items with the other sign": dataclasses.replace(
            good, trainer_item_vectors=-good.trainer_item_vectors
        ),
        "half a corpus": dataclasses.replace(good, parent=manifest_with_corpus(400)),
    }


@pytest.mark.parametrize(
    ("bad", "refusing"),
    [
        ("zero tower", "unit_length"),
        ("twice as long", "unit_length"),
        ("one vector for all items", "not_collapsed"),
        ("nearly one vector", "not_collapsed"),
        ("one vector for all users", "not_collapsed"),
        ("poor index", "ann_recall_at_100"),
        ("users shifted by one", "towers_agree"),
        ("items with the other sign", "towers_agree"),
        ("half a corpus", "corpus_kept"),
    ],
)
def test_a_bad_model_is_refused_by_its_gate(good: Measured, bad: str, refusing: str) -> None:
    model = bad_models(good)[bad]
    refused = [gate.measure(model) for gate in default_gates(GateSettings())]
    assert refusing in [result.gate for result in refused if not result.passed]


def test_the_bars_are_those_of_the_settings(good: Measured) -> None:
    strict = GateSettings(
        max_mean_cosine=0.0,
        max_mean_user_cosine=0.0,
        ann_recall_at_100=0.99,
        max_tower_difference=1e-9,
        max_corpus_loss=0.01,
    )
    related = dataclasses.replace(good, item_vectors=np.abs(good.item_vectors))
    refused = [r.gate for g in default_gates(strict) if not (r := g.measure(related)).passed]
    assert refused == ["not_collapsed", "ann_recall_at_100", "towers_agree", "corpus_kept"]


def test_corpus_without_a_parent_or_that_grew_passes(good: Measured) -> None:
    gate = CorpusKept(0.1)
    assert gate.measure(dataclasses.replace(good, parent=None)).passed
    grown = dataclasses.replace(good, parent=manifest_with_corpus(5))
    assert gate.measure(grown).measured == 0.0
    assert gate.measure(good).measured == pytest.approx(1 - 200 / 210)


def test_mean_pairwise_cosine_is_the_mean_over_pairs() -> None:
    vectors = unit(np.random.default_rng(1), 30) * np.float32(3)
    cosines = (vectors @ vectors.T) / 9
    expected = (cosines.sum() - np.trace(cosines)) / (30 * 29)
    assert mean_pairwise_cosine(vectors) == pytest.approx(expected, abs=1e-6)
    assert mean_pairwise_cosine(vectors[:1]) == 0.0
    assert mean_pairwise_cosine(np.repeat(vectors[:1], 5, axis=0)) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_stops_the_publish(value: float) -> None:
    table = np.zeros((40, 3), np.float32)
    arrays: dict[str, npt.NDArray[Any]] = {"table": table, "rows": np.arange(3), "more": np.ones(2)}
    assert check_finite(arrays).passed
    table[17, 1] = value
    with pytest.raises(GateRefused, match=r"gate 'finite' measured 1\.0000.*'table'.*unchanged"):
        check_finite(arrays)


def test_a_gate_is_one_class_with_one_method(good: Measured) -> None:
    class Never(Gate):
        name = "never"

        def measure(self, measured: Measured) -> GateResult:
            return GateResult(gate=self.name, measured=0.0, bar=1.0, needs="1.0000", passed=False)

    assert Gate.__abstractmethods__ == {"measure"}
    assert not Never().measure(good).passed


@pytest.mark.parametrize(
    ("gate", "measured", "passed"),
    [
        (UnitLength(), 1.0005, True),
        (UnitLength(), 1.002, False),
    ],
)
def test_lengths_may_differ_by_rounding_only(
    good: Measured, gate: Gate, measured: float, passed: bool
) -> None:
    longer = dataclasses.replace(good, user_vectors=good.user_vectors * np.float32(measured))
    assert gate.measure(longer).passed is passed


def test_figures_say_which_side_is_at_fault(good: Measured) -> None:
    assert (
        "users 5"
        in TowersAgree(1e-5)
        .measure(dataclasses.replace(good, trainer_user_vectors=good.user_vectors + np.float32(5)))
        .detail
    )
    assert NotCollapsed(0.9, 0.98).measure(good).detail.startswith("items ")
    assert AnnRecall(0.95).measure(good).needs == "0.9500"
