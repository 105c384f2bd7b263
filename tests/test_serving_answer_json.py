"""The JSON of an answer: put together from texts, it is what a dictionary an item would give."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from twotower.serving.answer_json import candidates
from twotower.serving.messages import MAX_K, RetrievedItem

SCORES = np.array([0.75, 1 / 3, 1e-9, 0.0, -0.1, -1.0], np.float32)
IDS: dict[str, list[Any]] = {
    "int": [7, -3, 2**62, 0, 11, 12],
    "str": ["a", 'b","b', "c\\", "ä,\n", "7", "f"],
}


def answered(item_ids: list[Any], scores: np.ndarray, display: bool = False) -> bytes:
    """The text that a retriever of these items would answer with."""
    shown = SimpleNamespace(display_json=lambda number: b'{"title":"%d"}' % number)
    retriever: Any = SimpleNamespace(
        decode_items=lambda positions: [item_ids[place] for place in positions.tolist()],
        shown=shown,
    )
    return orjson.dumps(candidates(retriever, np.arange(len(item_ids)), scores, display))


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("num_items", [0, 1, 2, 6])
@pytest.mark.parametrize("display", [False, True])
def test_texts_are_those_of_dictionaries(kind: str, num_items: int, display: bool) -> None:
    item_ids, scores = IDS[kind][:num_items], SCORES[:num_items]
    expected = [
        {"item_id": item_id, "score": score, "rank": rank}
        | ({"display": {"title": f"{rank - 1}"}} if display else {})
        for rank, (item_id, score) in enumerate(zip(item_ids, scores, strict=True), start=1)
    ]
    found = answered(item_ids, scores, display)
    assert found == orjson.dumps(expected, option=orjson.OPT_SERIALIZE_NUMPY)


def test_the_longest_answer_is_whole_and_reads_as_documented() -> None:
    scores = np.linspace(1, -1, MAX_K, dtype=np.float32)
    for _ in range(2):  # nothing of an answer stays behind
        found = answered(list(range(MAX_K)), scores)
        items = msgspec.json.decode(found, type=list[RetrievedItem])
        assert [item.rank for item in items] == list(range(1, MAX_K + 1))
        assert np.array([item.score for item in items], np.float32).tolist() == scores.tolist()
        assert b"display" not in found
        answered(list(range(MAX_K)), scores, display=True)
    assert json.loads(found)[-1]["item_id"] == MAX_K - 1
