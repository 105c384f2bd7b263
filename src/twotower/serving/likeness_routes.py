"""`POST /v1/similar` and `/v1/explain`: items like some others, and why a user gets an item."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final

import numpy as np

from twotower.serving.answer_json import candidates, encode, made_by
from twotower.serving.decoding import BodyDecoder
from twotower.serving.exchange import Call, Reply
from twotower.serving.explaining import explain
from twotower.serving.item_filter import EVERYTHING
from twotower.serving.messages import ExplainRequest, SimilarRequest
from twotower.serving.problems import RefusedRequest
from twotower.serving.refusals import as_problems
from twotower.serving.reload import Follower
from twotower.serving.retrieve_route import generation_header, served_now
from twotower.serving.served import Served

__all__ = ["LikenessRoutes"]

_SIMILAR: Final = BodyDecoder(SimilarRequest)
_EXPLAIN: Final = BodyDecoder(ExplainRequest)


class LikenessRoutes:
    """Answers from what the follower serves."""

    def __init__(self, follower: Follower, side_threads: Executor) -> None:
        self._follower = follower
        self._side_threads = side_threads

    def similar(self, call: Call) -> Reply:
        """Return the items whose vectors are nearest to the mean direction of those given."""
        request = _SIMILAR.decode(call.body)
        served = served_now(self._follower)
        with as_problems():
            content = encode(made_by(served, call.request_id) | _similar(served, request))
        return Reply(200, content, headers=generation_header(served))

    async def explain(self, call: Call) -> Reply:
        """Explain beside the event loop: it takes a tower call for each feature."""
        request = _EXPLAIN.decode(call.body)
        served = served_now(self._follower)
        stored = call.stored(request.user_id)

        def explained() -> bytes:
            with as_problems():
                found = explain(served.retriever, request, stored)
            if found is None:
                raise RefusedRequest(404, f"item {request.item_id!r} is not known")
            return encode(made_by(served, call.request_id) | found)

        content = await asyncio.get_running_loop().run_in_executor(self._side_threads, explained)
        return Reply(200, content, headers=generation_header(served))


def _similar(served: Served, request: SimilarRequest) -> dict[str, object]:
    retriever = served.retriever
    given = retriever.space.numbers_of(request.item_ids)
    known = given[given >= 0]
    if not len(known):
        raise RefusedRequest(404, "none of the items is known")
    directions = retriever.space.directions(known)
    mean = directions.mean(axis=0, keepdims=True)
    query = mean / max(float(np.linalg.norm(mean)), 1e-12)
    allowed = retriever.filter.allowed(request.filter) if request.filter else EVERYTHING
    hidden = np.concatenate([known, retriever.users.numbers(request.exclude)])
    k = retriever.overlay.at_most(request.k)
    result = retriever.index.search(query, k, exclude=[hidden], allowed=allowed.mask)
    num_found = int(np.count_nonzero(result.ids[0] >= 0))
    found = candidates(
        retriever, result.ids[0, :num_found], result.scores[0, :num_found], request.display
    )
    notes = ["unknown_items"] if len(known) < len(given) else []
    return {"degraded": [*notes, *allowed.degraded] or None, "candidates": found}
