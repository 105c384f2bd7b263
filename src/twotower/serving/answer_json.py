"""Answers as JSON: what was found, and what it was made from. Bytes depend on nothing else.

Scores are written with the digits that a float32 has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from twotower.serving.answer import Found
from twotower.serving.messages import RetrieveRequest
from twotower.serving.reload import Served
from twotower.serving.retriever import Retriever

__all__ = ["candidates", "encode", "made_by", "raw_json", "retrieve_json"]

IntArray = npt.NDArray[np.int64]


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
) -> list[dict[str, Any]]:
    """Return items and scores, best first, as the fields of `RetrievedItem`."""
    found: list[dict[str, Any]] = [
        {"item_id": item_id, "score": score, "rank": rank}
        for rank, (item_id, score) in enumerate(
            zip(retriever.decode_items(positions), scores, strict=True), start=1
        )
    ]
    if display:
        for candidate, position in zip(found, positions.tolist(), strict=True):
            candidate["display"] = raw_json(retriever.shown.display_json(position))
    return found


def retrieve_json(served: Served, request: RetrieveRequest, found: Found, request_id: str) -> bytes:
    """Return the answer to one request."""
    retriever = served.retriever
    answer = made_by(served, request_id)
    answer["degraded"] = found.degraded or None
    answer["candidates"] = candidates(retriever, found.positions, found.scores, request.display)
    return encode(answer)


def encode(answer: object) -> bytes:
    """Return an answer as JSON."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def raw_json(content: bytes) -> orjson.Fragment:
    """Return what is JSON already, to be put into an answer as it is."""
    return orjson.Fragment(content)
