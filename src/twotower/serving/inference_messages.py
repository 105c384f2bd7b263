"""The Open Inference Protocol's requests and answers, as far as retrieval has a use for them.

KServe, Seldon and Triton speak it: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from twotower.serving.messages import MAX_BATCH, MAX_K

__all__ = [
    "MODEL",
    "InferRequest",
    "InferResponse",
    "Live",
    "ModelMetadata",
    "ModelReady",
    "OutputTensor",
    "Parameters",
    "Ready",
    "RequestedOutput",
    "ServerMetadata",
    "Tensor",
    "TensorMetadata",
    "flat",
]

MODEL: Final = "twotower"
"""The name of the one model; its versions are generations."""

Datatype = Literal["BYTES", "BOOL", "INT32", "INT64", "FP32", "FP64"]
Dimension = Annotated[int, Meta(ge=1, le=10_000)]


class Live(msgspec.Struct, frozen=True):
    """Whether the process answers."""

    live: bool


class Ready(msgspec.Struct, frozen=True):
    """Whether to send requests here."""

    ready: bool


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What answers."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output; -1 in a shape is any length."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The model, and the generation that is its version."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model answers."""

    name: str
    ready: bool


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many items, and whether seen ones too."""

    k: Annotated[int, Meta(ge=1, le=MAX_K)] = 20
    include_seen: bool = False


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A value for each of `n` users: shape `[n]` or `[n, 1]`, of multi-valued features `[n, L]`."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    shape: Annotated[list[Dimension], Meta(min_length=1, max_length=2)]
    datatype: Datatype
    data: Annotated[list[Any], Meta(description="Flat, or nested as the shape says.")]
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An output that is wanted."""

    name: Literal["item_ids", "scores", "num_items"]
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Users, and what the request says of them."""

    inputs: Annotated[
        list[Tensor],
        Meta(
            min_length=1,
            max_length=257,
            description=f"`user_id` of at most {MAX_BATCH} users, and features under their names.",
        ),
    ]
    outputs: Annotated[
        list[RequestedOutput], Meta(max_length=3, description="All where it is empty.")
    ] = []
    id: Annotated[str, Meta(max_length=128)] | None = None
    parameters: Parameters = Parameters()


class OutputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Values for each user; places that no item fills hold an empty ID and a score of 0."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any]


class InferResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The items of each user."""

    model_name: str
    model_version: Annotated[str, Meta(description="The generation.")]
    id: str | None = None
    outputs: list[OutputTensor]


def flat(data: list[Any]) -> Iterator[Any]:
    """Yield the values of a tensor that is flat, or nested as its shape says."""
    for value in data:
        if isinstance(value, list):
            yield from value
        else:
            yield value
