"""Each gate refuses what it is there for, and lets a good model pass."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from tiny_checkpoint import tiny_checkpoint
from twotower.checkpoint import CheckpointMeta
from twotower.data.feature_fields import Field
from twotower.data.features import FeatureSpec
from twotower.data.settings import FeatureSettings
from twotower.errors import GateRefused
from twotower.publishing import gates
from twotower.publishing.gates import Gate, Measured, check_finite, default_gates
from twotower.publishing.gates.ann_recall import AnnRecall
from twotower.publishing.gates.corpus_kept import CorpusKept
from twotower.publishing.gates.coverage import Coverage
from twotower.publishing.gates.gate import Side
from twotower.publishing.gates.not_collapsed import NotCollapsed, mean_pairwise_cosine
from twotower.publishing.gates.search_latency import SearchLatency
from twotower.publishing.gates.towers_agree import TowersAgree
from twotower.publishing.gates.unit_length import UnitLength
from twotower.publishing.held_out import HeldOutRecall, list_length
from twotower.publishing.manifest import GateResult, IndexEntry, Manifest, Trained, Window
from twotower.publishing.settings import GateSettings


def unit(rng: np.random.Generator, count: int, dim: int = 16) -> npt.NDArray[np.float32]:
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def manifest_of(**changes: Any) -> Manifest:
    manifest = Manifest(
        name="g-000001",
        kind="full",
        parent=None,
        created_at="",
        window=Window(from_day="2022-05-01", through_day="2022-05-01"),
        trained=Trained(rows=1000, window_rows=1000),
        vector_dim=16,
        counts={"corpus": 210},
        index=IndexEntry(engine="exact", num_items=210),
    )
    return msgspec.structs.replace(manifest, **changes)


def manifest_with_corpus(num_items: int) -> Manifest:
    return manifest_of(counts={"corpus": num_items})


def meta(*, rows: int = 900, through: str = "2022-05-02", kind: str = "full") -> CheckpointMeta:
    """A night from the 2nd of May on."""
    described = tiny_checkpoint().meta
    return msgspec.structs.replace(
        described,
        kind=kind,
        window=msgspec.structs.replace(
            described.window, from_day="2022-05-02", through_day=through
        ),
        trained=msgspec.structs.replace(described.trained, window_rows=rows),
    )


def recall(candidate: float, live: float | None, popularity: float = 0.1) -> HeldOutRecall:
    """Figures around the given means: 200 users who resemble themselves under every model."""
    rng = np.random.default_rng(0)
    ease = 0.1 * rng.normal(size=200)
    ease -= ease.mean()
    noise = [0.02 * rng.normal(size=200) for _ in range(3)]
    figures = [mean + ease + part - part.mean() for mean, part in zip(
        (candidate, popularity, live or 0.0), noise, strict=True
    )]  # fmt: skip
    has_live = live is not None
    return HeldOutRecall(
        100, 500, np.arange(200), figures[0], figures[1], figures[2] if has_live else None
    )


def spec(*values: str, order: tuple[str, ...] = ("city", "shop")) -> FeatureSpec:
    """Two categorical fields; `values` are the cities."""
    settings = FeatureSettings(kind="categorical")
    rows = {"city": tuple(range(2, 2 + len(values))), "shop": (90, 91)}
    names = {"city": values, "shop": ("a", "b")}
    fields = [
        Field(
            name=name, settings=settings, role="categorical", missing_row=place,
            values=names[name], rows=rows[name],
        )
        for place, name in enumerate(order)
    ]  # fmt: skip
    return FeatureSpec(tuple(fields), 92)


def side(features: FeatureSpec, live: FeatureSpec | None = None, num_moved: int = 0) -> Side:
    return Side("users", features, 92, live, num_moved, 0.99)


@pytest.fixture
def good() -> Measured:
    rng = np.random.default_rng(0)
    items, users = unit(rng, 200), unit(rng, 50)
    return Measured(
        meta=meta(),
        parent=manifest_with_corpus(210),
        item_vectors=items,
        user_vectors=users,
        trainer_item_vectors=items[:100] + np.float32(1e-7),
        trainer_user_vectors=users - np.float32(1e-7),
        ann_recall_at_100=0.97,
        search_p50_us=480.0,
        coverage=0.30,
        live_coverage=0.32,
        held_out=recall(0.3, 0.3),
        sides=(side(spec("Oslo", "Lima", "Pune"), spec("Oslo", "Lima")),),
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
        "a third of the clicks": dataclasses.replace(good, meta=meta(rows=300)),
        "no click": dataclasses.replace(good, meta=meta(rows=0), parent=None),
        "everybody's items": dataclasses.replace(good, coverage=0.15),
        "as good as popularity": dataclasses.replace(good, held_out=recall(0.1, 0.1)),
        "worse than live": dataclasses.replace(good, held_out=recall(0.3, 0.32)),
        "a stale specification": dataclasses.replace(
            good, sides=(side(spec("Oslo"), spec("Oslo", "Lima")),)
        ),
        "values in another order": dataclasses.replace(
            good, sides=(side(spec("Lima", "Oslo"), spec("Oslo", "Lima")),)
        ),
        "features in another order": dataclasses.replace(
            good, sides=(side(spec("Oslo", order=("shop", "city")), spec("Oslo")),)
        ),
        "a specification of another table": dataclasses.replace(
            good, sides=(side(spec("Oslo"), spec("Oslo"))._replace(num_feature_rows=93),)
        ),
        "embeddings of others": dataclasses.replace(
            good, sides=(side(spec("Oslo"))._replace(share_recognised=0.6),)
        ),
        "a moved ID": dataclasses.replace(good, sides=(side(spec("Oslo"), num_moved=1),)),
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
        ("a third of the clicks", "window_kept"),
        ("no click", "window_kept"),
        ("everybody's items", "coverage"),
        ("as good as popularity", "recall_above_popularity"),
        ("worse than live", "recall_not_below_live"),
        ("a stale specification", "features_kept"),
        ("values in another order", "features_kept"),
        ("features in another order", "features_kept"),
        ("a specification of another table", "features_kept"),
        ("embeddings of others", "embeddings_kept"),
        ("a moved ID", "ids_kept"),
    ],
)
def test_a_bad_model_is_refused_by_its_gate(good: Measured, bad: str, refusing: str) -> None:
    model = bad_models(good)[bad]
    results = [gate.measure(model) for gate in default_gates(GateSettings())]
    assert refusing in [result.gate for result in results if not result.passed]


def test_the_bars_are_those_of_the_settings(good: Measured) -> None:
    strict = GateSettings(
        max_mean_cosine=0.0,
        max_mean_user_cosine=0.0,
        ann_recall_at_100=0.99,
        max_tower_difference=1e-9,
        max_corpus_loss=0.01,
        max_window_loss=0.05,
        max_coverage_loss=0.05,
    )
    related = dataclasses.replace(good, item_vectors=np.abs(good.item_vectors))
    refused = [r.gate for g in default_gates(strict) if not (r := g.measure(related)).passed]
    assert sorted(refused) == [
        "ann_recall_at_100",
        "corpus_kept",
        "coverage",
        "not_collapsed",
        "towers_agree",
        "window_kept",
    ]


def test_a_search_may_take_its_budget(good: Measured) -> None:
    no_users = dataclasses.replace(good, search_p50_us=None)
    assert SearchLatency(480).measure(good).passed
    refused = SearchLatency(479).measure(good)
    assert (refused.passed, refused.measured, refused.bar) == (False, 480.0, 479)
    assert SearchLatency.of(GateSettings(max_search_us=479)).measure(good) == refused
    for nothing in (SearchLatency(0).measure(good), SearchLatency(479).measure(no_users)):
        assert nothing.passed
        assert nothing.measured is None


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


def gate_named(name: str, **settings: float) -> Gate:
    return next(g for g in default_gates(GateSettings(**settings)) if g.name == name)  # type: ignore[arg-type]


def test_every_file_of_the_folder_is_a_gate() -> None:
    folder = Path(inspect.getfile(gates)).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "gate", "finite"}
    modules = {type(gate).__module__.rpartition(".")[2] for gate in default_gates(GateSettings())}
    assert modules == files


def test_a_new_gate_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weekday.py").write_text(
        "from twotower.publishing.gates.gate import Gate, at_most\n"
        "class Weekday(Gate):\n"
        "    name = 'weekday'\n"
        "    def measure(self, measured):\n"
        "        return at_most(self.name, 1.0, 0.0)\n"
    )
    monkeypatch.setattr(gates, "__path__", [*gates.__path__, str(tmp_path)])
    assert "weekday" in [gate.name for gate in default_gates(GateSettings())]
    sys.modules.pop("twotower.publishing.gates.weekday")


def test_what_noise_explains_is_no_reason(good: Measured) -> None:
    gate = gate_named("recall_not_below_live")
    assert gate.measure(dataclasses.replace(good, held_out=recall(0.3, 0.308))).passed
    wide = recall(0.3, 0.32)
    noisy = wide._replace(candidate=wide.candidate + np.tile([0.3, -0.3], 100))
    assert not gate.measure(dataclasses.replace(good, held_out=wide)).passed
    assert gate.measure(dataclasses.replace(good, held_out=noisy)).passed
    popular = gate_named("recall_above_popularity")
    slightly = recall(0.106, None)
    noisy = slightly._replace(candidate=slightly.candidate + np.tile([0.3, -0.3], 100))
    assert popular.measure(dataclasses.replace(good, held_out=slightly)).passed
    assert not popular.measure(dataclasses.replace(good, held_out=noisy)).passed


def test_users_are_resampled_and_not_their_positives(good: Measured) -> None:
    """Ten copies of every user are no more evidence than one."""
    once = recall(0.3, 0.31)
    assert once.live is not None
    copies = HeldOutRecall(
        100, 5000, np.tile(once.users, 10),
        *(np.tile(part, 10) for part in (once.candidate, once.popularity, once.live)),
    )  # fmt: skip
    gate = gate_named("recall_not_below_live")
    bars = [gate.measure(dataclasses.replace(good, held_out=h)).bar for h in (once, copies)]
    assert bars[0] == pytest.approx(bars[1], abs=1e-12)


@pytest.mark.parametrize(("max_loss", "passed"), [(0.0, False), (0.1, True)])
def test_the_tolerance_is_a_share_of_the_live_recall(
    good: Measured, max_loss: float, passed: bool
) -> None:
    gate = gate_named("recall_not_below_live", max_recall_loss=max_loss)
    assert gate.measure(dataclasses.replace(good, held_out=recall(0.28, 0.3))).passed is passed


def test_confidence_moves_both_bars(good: Measured) -> None:
    model = dataclasses.replace(good, held_out=recall(0.3, 0.3))
    for name, higher in (("recall_not_below_live", 0.8), ("recall_above_popularity", 0.99)):
        sure, unsure = (gate_named(name, confidence=c).measure(model).bar for c in (0.99, 0.8))
        assert (sure > unsure) is (higher == 0.99)


@pytest.mark.parametrize("name", ["recall_above_popularity", "recall_not_below_live"])
def test_too_little_to_judge_passes_and_says_so(good: Measured, name: str) -> None:
    result = gate_named(name).measure(dataclasses.replace(good, held_out="nothing was held out"))
    assert result.passed
    assert result.measured is None
    assert result.detail == "nothing was held out"
    no_live = dataclasses.replace(good, held_out=recall(0.3, None))
    assert (gate_named(name).measure(no_live).measured is None) is (name[7:10] == "not")


def test_a_window_of_two_days_is_counted_by_the_day(good: Measured) -> None:
    gate = gate_named("window_kept")
    two_days = dataclasses.replace(good, meta=meta(rows=900, through="2022-05-03"))
    assert gate.measure(two_days).measured == pytest.approx(0.55)
    assert gate.measure(good).measured == pytest.approx(0.1)
    window = msgspec.structs.replace(two_days.meta.window, skipped=("2022-05-02", "2022-04-30"))
    described = msgspec.structs.replace(two_days.meta, window=window)
    skipped = dataclasses.replace(good, meta=described)
    assert gate.measure(skipped).measured == pytest.approx(0.1)
    base = dataclasses.replace(good, meta=meta(rows=0, kind="base"))
    assert gate.measure(base).measured is None
    after_base = dataclasses.replace(good, parent=manifest_of(kind="base"))
    assert gate.measure(after_base).measured == 0.0


def test_a_list_is_at_most_a_tenth_of_the_corpus() -> None:
    assert [list_length(n) for n in (3, 57, 400, 1000, 7583)] == [1, 5, 40, 100, 100]


def test_a_base_model_is_no_yardstick_for_coverage(good: Measured) -> None:
    gate = Coverage.of(GateSettings())
    narrowed = dataclasses.replace(good, coverage=0.05)
    assert not gate.measure(narrowed).passed
    after_base = dataclasses.replace(narrowed, parent=manifest_of(kind="base"))
    assert gate.measure(after_base).passed
