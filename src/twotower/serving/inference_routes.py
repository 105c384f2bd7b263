"""`/v2`: the Open Inference Protocol as another way to ask for what `/v1/retrieve` gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from importlib.metadata import version
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

from twotower.data.ids import Id
from twotower.serving.answer import Found
from twotower.serving.answer_json import encode
from twotower.serving.decoding import BodyDecoder
from twotower.serving.exchange import Call, Reply
from twotower.serving.inference_messages import (
    MODEL,
    InferRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    Tensor,
    TensorMetadata,
    flat,
)
from twotower.serving.messages import MAX_BATCH
from twotower.serving.problems import Fault, RefusedRequest
from twotower.serving.profiles import StoredProfile
from twotower.serving.refusals import AGAIN, as_problems
from twotower.serving.reload import Follower
from twotower.serving.retrieve_route import generation_header, served_now
from twotower.serving.served import Served

__all__ = ["InferenceRoutes"]

_INFER: Final = BodyDecoder(InferRequest)
_USER: Final = "user_id"


class InferenceRoutes:
    """Answers from what the follower serves, under the protocol's names."""

    def __init__(self, follower: Follower, is_ready: Callable[[], bool]) -> None:
        self._follower = follower
        self._is_ready = is_ready

    def live(self, call: Call) -> Reply:
        """Answer, which says it all."""
        return _json(Live(live=True))

    def ready(self, call: Call) -> Reply:
        """Return whether every worker answers."""
        if not self._is_ready():
            raise RefusedRequest(503, "not ready; /readyz says why", headers=AGAIN)
        return _json(Ready(ready=True))

    def server(self, call: Call) -> Reply:
        """Return what answers."""
        return _json(ServerMetadata(name=MODEL, version=version(MODEL), extensions=[]))

    def model(self, call: Call) -> Reply:
        """Return what the model takes and gives."""
        served = self._named(call)
        encoder = served.retriever.encoder
        features = [
            TensorMetadata(
                name=field.name,
                datatype="FP64" if field.settings.kind == "numeric" else "BYTES",
                shape=[-1, -1] if field.role == "multi" else [-1],
            )
            for field in encoder.user_features.fields
        ]
        user = TensorMetadata(
            name=_USER, datatype="BYTES" if encoder.users.kind == "str" else "INT64", shape=[-1]
        )
        return _json(
            ModelMetadata(
                name=MODEL,
                versions=[served.activation.generation],
                platform="twotower",
                inputs=[user, *features],
                outputs=[
                    TensorMetadata(name="item_ids", datatype="BYTES", shape=[-1, -1]),
                    TensorMetadata(name="scores", datatype="FP32", shape=[-1, -1]),
                    TensorMetadata(name="num_items", datatype="INT32", shape=[-1]),
                ],
            )
        )

    def model_ready(self, call: Call) -> Reply:
        """Return whether this worker has it loaded and warm."""
        self._named(call)
        return _json(ModelReady(name=MODEL, ready=True))

    async def infer(self, call: Call) -> Reply:
        """Return the items of each user, all from one generation."""
        served = self._named(call)
        request = _INFER.decode(call.body)
        users = list(_users(request))
        found = []
        for user_id, features in users:
            if call.is_late:
                raise RefusedRequest(504, "the time that the client gave passed before the end")
            with as_problems():
                found.append(_find(served, request, user_id, features, call.stored(user_id)))
            await asyncio.sleep(0)  # whoever waits is answered before the next one
        content = encode(_answer(served, request, found))
        return Reply(200, content, headers=generation_header(served))

    def _named(self, call: Call) -> Served:
        """Return what is served, if the path names it."""
        if call.values["model"] != MODEL:
            raise RefusedRequest(404, f"there is no such model; the one there is is '{MODEL}'")
        served = served_now(self._follower)
        wanted, live = call.values.get("version"), served.activation.generation
        if wanted not in (None, live):
            raise RefusedRequest(404, f"there is no such version; the one that is live is '{live}'")
        return served


def _json(answer: msgspec.Struct) -> Reply:
    return Reply(200, msgspec.json.encode(answer))


def _find(
    served: Served,
    request: InferRequest,
    user_id: Id,
    features: dict[str, Any],
    stored: StoredProfile,
) -> Found:
    how = request.parameters
    return served.retriever.find(
        user_id, how.k, features=features, include_seen=how.include_seen, stored=stored
    )


def _users(request: InferRequest) -> Iterator[tuple[Id, dict[str, Any]]]:
    """Yield each user with what the request says of him."""
    columns = {tensor.name: list(_rows(tensor, n)) for n, tensor in enumerate(request.inputs)}
    users = columns.pop(_USER, None)
    if users is None:
        raise _wrong("$.inputs", f"expected an input named '{_USER}'")
    if len(users) > MAX_BATCH:
        raise _wrong("$.inputs", f"expected at most {MAX_BATCH} users, found {len(users)}")
    for name, column in columns.items():
        if len(column) != len(users):
            detail = f"expected {len(users)} rows, one a user, found {len(column)} of '{name}'"
            raise _wrong("$.inputs", detail)
    for row, user_id in enumerate(users):
        yield user_id, {name: column[row] for name, column in columns.items()}


def _rows(tensor: Tensor, number: int) -> Iterator[Any]:
    """Yield the value of each row, a list of those that are not empty where it has several."""
    given = list(flat(tensor.data))
    rows, width = tensor.shape[0], prod(tensor.shape[1:])
    if len(given) != rows * width:
        detail = f"expected {rows * width} values for the shape {tensor.shape}, found {len(given)}"
        raise _wrong(f"$.inputs[{number}].data", detail)
    for row in range(rows):
        values = given[row * width : (row + 1) * width]
        yield values[0] if width == 1 else [value for value in values if value != ""]


def _wrong(path: str, detail: str) -> RefusedRequest:
    return RefusedRequest(422, detail, faults=[Fault(path, detail)])


def _answer(served: Served, request: InferRequest, found: list[Found]) -> dict[str, Any]:
    """Return the fields of `InferResponse`."""
    width = max((len(one.positions) for one in found), default=0)
    ids = np.full((len(found), width), "", object)
    scores = np.zeros((len(found), width), np.float32)
    for row, one in enumerate(found):
        kept = len(one.positions)
        ids[row, :kept] = [str(item) for item in served.retriever.decode_items(one.positions)]
        scores[row, :kept] = one.scores
    shape = [len(found), width]
    outputs: list[dict[str, Any]] = [
        {"name": "item_ids", "datatype": "BYTES", "shape": shape, "data": ids.ravel().tolist()},
        {"name": "scores", "datatype": "FP32", "shape": shape, "data": scores.ravel()},
        {
            "name": "num_items",
            "datatype": "INT32",
            "shape": shape[:1],
            "data": [len(one.positions) for one in found],
        },
    ]
    wanted = {output.name for output in request.outputs}
    answer: dict[str, Any] = {
        "model_name": MODEL,
        "model_version": served.activation.generation,
        "outputs": [one for one in outputs if not wanted or one["name"] in wanted],
    }
    return answer if request.id is None else answer | {"id": request.id}
