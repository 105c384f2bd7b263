"""Answers as JSON: what was found, and what it was made from. Bytes depend on nothing else.

Scores are written with the digits that a float32 has.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from twotower.data.ids import Id
from twotower.serving.answer import Found
from twotower.serving.messages import MAX_K, RetrieveRequest
from twotower.serving.retriever import Retriever
from twotower.serving.served import Served

__all__ = ["candidates", "encode", "made_by", "raw_json", "retrieve_json"]

IntArray = npt.NDArray[np.int64]

_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
_NUM_PARTS: Final = 6
_PARTS: Final = [
    part
    for rank in range(1, MAX_K + 1)
    for part in (
        *(b'{"item_id":' if rank == 1 else b'},{"item_id":', b"", b',"score":', b""),
        *(b',"rank":%d' % rank, b""),
    )
]
"""Of all the items of the longest answer, with room for the ID, the score and what is shown."""


def made_by(served: Served, request_id: str) -> dict[str, Any]:
    """Return what every answer names; the fields of `MadeBy`."""
    retriever = served.retriever
    return {
        "generation": served.activation.generation,
        "sequence": served.activation.sequence,
        "delta": retriever.delta,
        "items_number": retriever.items_number,
        "user_state_offset": retriever.user_state_offset,
        "request_id": request_id,
    }


def candidates(
    retriever: Retriever, positions: IntArray, scores: npt.NDArray[np.float32], display: bool
) -> orjson.Fragment:
    """Return items and scores, best first, as the JSON of `RetrievedItem`s.

    Put together from texts: a dictionary an item would cost several times as much.
    """
    num_items = len(positions)
    if num_items == 0:
        return orjson.Fragment(b"[]")
    parts = _PARTS[: _NUM_PARTS * num_items]
    parts[1::_NUM_PARTS] = _id_texts(retriever.decode_items(positions))
    parts[3::_NUM_PARTS] = orjson.dumps(scores, option=_NUMPY)[1:-1].split(b",")
    if display:
        shown = map(retriever.shown.display_json, positions.tolist())
        parts[5::_NUM_PARTS] = [b',"display":' + content for content in shown]
    return orjson.Fragment(b"".join([b"[", *parts, b"}]"]))


def _id_texts(item_ids: list[Id]) -> list[bytes]:
    if isinstance(item_ids[0], int):
        return orjson.dumps(item_ids)[1:-1].split(b",")
    return [orjson.dumps(item_id) for item_id in item_ids]


def retrieve_json(served: Served, request: RetrieveRequest, found: Found, request_id: str) -> bytes:
    """Return the answer to one request."""
    retriever = served.retriever
    answer = made_by(served, request_id)
    answer["degraded"] = found.degraded or None
    answer["candidates"] = candidates(retriever, found.positions, found.scores, request.display)
    return encode(answer)


def encode(answer: object) -> bytes:
    """Return an answer as JSON."""
    return orjson.dumps(answer, option=_NUMPY)


def raw_json(content: bytes) -> orjson.Fragment:
    """Return what is JSON already, to be put into an answer as it is."""
    return orjson.Fragment(content)
