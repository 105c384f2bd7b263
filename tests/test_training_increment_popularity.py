"""A live popularity coordinate follows the stream; a delta brings what moved, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream import stream_of
from tiny_checkpoint import CUT_MS, tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.data.ids import Id
from twotower.errors import ConfigError
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever
from twotower.training.increment.durable_update import DurableUpdate
from twotower.training.increment.journal import Journal
from twotower.training.increment.settings import IncrementSettings
from twotower.training.incremental_update import IncrementalUpdate
from twotower.training.settings import TrainingSettings

TRAINING = TrainingSettings(threads=1)
WEIGHT = 0.5
HOUR_MS = 3_600_000


def update_of(base: Checkpoint, **changes: Any) -> IncrementalUpdate:
    given = {"batch_size": 8, "uniform": 8, "popularity": "live", "popularity_step": 0.05}
    return IncrementalUpdate(base, IncrementSettings(**{**given, **changes}), TRAINING)


def expected_log(base: Checkpoint, item: Id, clicked_ms: list[int], now_ms: int) -> float:
    """The definition, click by click: every one fades by half in a half-life."""
    settings = base.meta.model.popularity
    position = int(base.items.positions([item])[0])
    counts = base.popularity.at(CUT_MS)
    known = counts[position] if 0 <= position < len(counts) else 0.0
    half_life_ms = settings.half_life_h * HOUR_MS
    count = known * 0.5 ** ((now_ms - CUT_MS) / half_life_ms)
    count += sum(0.5 ** ((now_ms - then) / half_life_ms) for then in clicked_ms)
    return float(np.log(count + settings.smoothing))


@pytest.mark.parametrize("rows", ["user", "user_and_item"])
def test_a_clicked_item_rises_and_the_others_fade(rows: str) -> None:
    base = tiny_checkpoint(popularity_weight=WEIGHT)
    base.popularity.grow(len(base.items))
    base.popularity.counts[np.setdiff1d(np.arange(len(base.items)), base.corpus)] = 9.0
    update = update_of(base, rows=rows)
    update.learn(stream_of([700] * 4, [650, 650, 650, 651], every_ms=HOUR_MS))
    now_ms = CUT_MS + 3 * HOUR_MS + 1
    delta = update.take_delta_rows()
    scale = WEIGHT * TRAINING.temperature
    found = dict(zip(delta.item_ids.tolist(), delta.item_vectors[:, -1], strict=True))
    clicked: dict[Id, list[int]] = {
        650: [CUT_MS + n * HOUR_MS for n in range(3)],
        651: [CUT_MS + 3 * HOUR_MS],
    }
    for item, coordinate in found.items():
        logarithm = expected_log(base, item, clicked.get(item, []), now_ms)
        assert coordinate == pytest.approx(scale * logarithm, abs=1e-5), item
    for item in base.items.decode(base.corpus):
        moved = abs(
            expected_log(base, item, clicked.get(item, []), now_ms)
            - expected_log(base, item, [], CUT_MS)
        )
        assert (item in found) == (moved > 0.05 or (rows != "user" and item in clicked)), item
    assert {650, 651} < set(found) < set(base.items.decode(base.corpus))


def test_what_was_sent_is_not_sent_again_and_rows_of_items_stay() -> None:
    base = tiny_checkpoint(popularity_weight=WEIGHT)
    served = np.random.default_rng(0).normal(size=(len(base.corpus), 9)).astype(np.float32)
    settings = IncrementSettings(batch_size=8, popularity="live", popularity_step=0.3)
    update = IncrementalUpdate(base, settings, TRAINING, item_vectors=served)
    update.learn(stream_of([700] * 3, [650] * 3))
    first = update.take_delta_rows()
    assert first.item_ids.tolist() == [650]
    place = base.corpus.tolist().index(int(base.items.positions([650])[0]))
    np.testing.assert_array_equal(first.item_vectors[0, :-1], served[place, :-1])
    own_row = base.items.rows[base.items.positions([650])]
    np.testing.assert_array_equal(
        first.item_embeddings, base.model.tables["item_id"].weight[own_row].numpy()
    )
    update.learn(stream_of([699] * 9, [651] * 9, first_offset=3))
    assert update.take_delta_rows().item_ids.tolist() == [651]
    assert not update.take_delta_rows()


def test_a_new_item_comes_with_its_first_click() -> None:
    base = tiny_checkpoint(popularity_weight=WEIGHT)
    update = update_of(base)
    update.learn(stream_of([700], [5_000]))
    delta = update.take_delta_rows()
    (vector,) = delta.item_vectors[delta.item_ids == 5_000]
    expected = WEIGHT * TRAINING.temperature * expected_log(base, 5_000, [CUT_MS], CUT_MS + 1)
    assert vector[-1] == pytest.approx(expected, abs=1e-6)


def test_a_user_beyond_his_share_makes_nothing_popular() -> None:
    base = tiny_checkpoint(popularity_weight=WEIGHT)
    update = update_of(base, user_limit=2, popularity_step=0.01)
    update.learn(stream_of([700] * 2, [651, 652]))
    update.take_delta_rows()
    update.learn(stream_of([700] * 50, [650] * 50, first_offset=2))
    assert 650 not in update.take_delta_rows().item_ids


def test_without_a_coordinate_it_cannot_be_live() -> None:
    with pytest.raises(ConfigError, match=r"expected model\.popularity\.weight above 0"):
        update_of(tiny_checkpoint())


def test_a_stopped_update_goes_on_with_the_same_counts(tmp_path: Path) -> None:
    base = tiny_checkpoint(popularity_weight=WEIGHT)

    def durable() -> DurableUpdate:
        return DurableUpdate(update_of(base), Journal(tmp_path / "g", "ab" * 16, 1 << 20))

    whole = update_of(base)
    first, second = stream_of([700] * 3, [650] * 3), stream_of([699], [650], first_offset=3)
    stopped = durable()
    stopped.learn(first)
    stopped.commit()
    again = durable()
    again.learn(second)
    whole.learn(first)
    whole.learn(second)
    found, expected = again.take_delta_rows(), whole.take_delta_rows()
    assert found.item_ids.tolist() == expected.item_ids.tolist()
    np.testing.assert_array_equal(found.item_vectors, expected.item_vectors)


def test_what_is_popular_now_is_found_first(tmp_path: Path) -> None:
    base = tiny_checkpoint(popularity_weight=20.0)
    store = ModelStore(tmp_path / "data")
    published = publish(base, store, index=IndexSettings(engine="exact"))
    retriever = Retriever.open(tmp_path / "data", published.name)
    before = retriever.retrieve(9_999, 5).candidates
    assert before[0].item_id != 650
    update = update_of(base)
    update.learn(stream_of([700] * 40, [650] * 40))
    after = retriever.with_rows(update.take_delta_rows()).retrieve(9_999, 5)
    assert after.candidates[0].item_id == 650
