"""Events as blocks of columns: how the embedded log keeps them, and how they are read back.

A block is one write of many events. Column by column it is compact, and reading joins the columns
of many blocks with one copy instead of a Python object an event. Legend: `n` events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from twotower.data.events import (
    EVENT_KINDS,
    NO_NAME,
    NO_REQUEST,
    Event,
    EventColumns,
    IdKinds,
)
from twotower.data.ids import IdKind
from twotower.data.schema import EventIdArray, IdArray

__all__ = [
    "Block",
    "NameCodes",
    "columns_of",
    "encode_block",
    "event_keys",
    "events_of",
    "payloads",
]

_CODES: Final = {kind: code for code, kind in enumerate(EVENT_KINDS)}
_ENCODER: Final = msgspec.msgpack.Encoder()
_NO_TEXT: Final = ""

Scalar = TypeVar("Scalar", bound=np.generic)


class _Texts(msgspec.Struct, frozen=True, array_like=True):
    """`n` texts: their lengths in bytes, `uint16[n]`, and their UTF-8 one after the other."""

    lengths: bytes
    joined: bytes


class Block(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The columns of `n` events; numbers are little-endian. The tag is the format's version."""

    kind: bytes
    event_id: _Texts
    user_id: bytes | _Texts
    """`int64[n]`, or texts."""
    item_id: bytes | _Texts
    event_time_ms: bytes
    received_ms: bytes
    request_id: _Texts
    """The empty text where there is none."""
    outcome: bytes
    value: bytes
    """`float64[n]`."""
    stage: bytes


class NameCodes(NamedTuple):
    """Names that events use again and again; the code of a name is its place."""

    outcomes: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


def event_keys(events: Sequence[Event]) -> EventIdArray:
    """Return xxh3_64 of each event ID, `uint64[n]`."""
    encoded = map(str.encode, [event.event_id for event in events])
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(events))


def payloads(events: Sequence[Event]) -> EventIdArray:
    """Return a digest of each whole event, `uint64[n]`: equal events have equal ones."""
    encoded = map(_ENCODER.encode, events)
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(events))


def encode_block(
    events: Sequence[Event], received_ms: npt.NDArray[np.int64], names: NameCodes, kinds: IdKinds
) -> bytes:
    """Return the block of `events`, all of whose names are in `names`."""
    outcomes = {name: code for code, name in enumerate(names.outcomes)} | {None: NO_NAME}
    stages = {name: code for code, name in enumerate(names.stages)} | {None: NO_NAME}
    block = Block(
        kind=bytes([_CODES[event.kind] for event in events]),
        event_id=_texts([event.event_id for event in events]),
        user_id=_ids([event.user_id for event in events], kinds.user),
        item_id=_ids([event.item_id for event in events], kinds.item),
        event_time_ms=np.array([event.event_time_ms for event in events], "<i8").tobytes(),
        received_ms=received_ms.astype("<i8").tobytes(),
        request_id=_texts([event.request_id or _NO_TEXT for event in events]),
        outcome=bytes([outcomes[event.outcome] for event in events]),
        value=np.array([event.value for event in events], "<f8").tobytes(),
        stage=bytes([stages[event.stage] for event in events]),
    )
    return _ENCODER.encode(block)


def _ids(ids: Sequence[int | str], kind: IdKind) -> bytes | _Texts:
    return np.array(ids, "<i8").tobytes() if kind == "int" else _texts([str(i) for i in ids])


def _texts(texts: Sequence[str]) -> _Texts:
    together = "".join(texts)
    joined = together.encode()
    if len(joined) > len(together):  # a letter of several bytes: a text's length is not its bytes'
        lengths = np.fromiter((len(text.encode()) for text in texts), "<u2", len(texts))
    else:
        lengths = np.fromiter(map(len, texts), "<u2", len(texts))
    return _Texts(lengths.tobytes(), joined)


def columns_of(
    first_offset: int,
    blocks: Sequence[Block],
    keys: Sequence[bytes],
    names: NameCodes,
    kinds: IdKinds,
    *,
    with_requests: bool = True,
) -> EventColumns:
    """Return the events of consecutive blocks as one set of columns.

    Args:
        first_offset: of the first event.
        blocks: in the order of their offsets.
        keys: `uint64[n]` of each block, its event keys.
        names: at least all names that the blocks use.
        kinds: what the log's IDs are.
        with_requests: False leaves every request out, and with it all work in Python an event.
    """
    kind = _joined([block.kind for block in blocks], np.uint8)
    return EventColumns(
        offset=np.arange(first_offset, first_offset + len(kind), dtype=np.int64),
        kind=kind,
        event_key=_joined(keys, np.uint64),
        user_id=_id_array([block.user_id for block in blocks], kinds.user),
        item_id=_id_array([block.item_id for block in blocks], kinds.item),
        event_time_ms=_joined([block.event_time_ms for block in blocks], np.int64),
        received_ms=_joined([block.received_ms for block in blocks], np.int64),
        request_key=_request_keys(blocks)
        if with_requests
        else np.full(len(kind), NO_REQUEST, np.uint64),
        outcome=_joined([block.outcome for block in blocks], np.uint8),
        value=_joined([block.value for block in blocks], np.float64).astype(np.float32),
        stage=_joined([block.stage for block in blocks], np.uint8),
        outcome_names=names.outcomes,
        stage_names=names.stages,
    )


def _joined(parts: Sequence[bytes], dtype: type[Scalar]) -> npt.NDArray[Scalar]:
    stored = np.frombuffer(b"".join(parts), np.dtype(dtype).newbyteorder("<"))
    return stored.astype(dtype, copy=False)


def _id_array(parts: Sequence[bytes | _Texts], kind: IdKind) -> IdArray:
    if kind == "int":
        return _joined([part for part in parts if isinstance(part, bytes)], np.int64)
    texts = [part for part in parts if isinstance(part, _Texts)]
    lengths, joined = _join_texts(texts)
    width = int(lengths.max(initial=1))
    padded = np.zeros((len(lengths), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = np.frombuffer(joined, np.uint8)
    return padded.view(f"S{width}").reshape(len(lengths))


def _join_texts(texts: Sequence[_Texts]) -> tuple[npt.NDArray[np.int64], bytes]:
    lengths = _joined([text.lengths for text in texts], np.uint16).astype(np.int64)
    return lengths, b"".join([text.joined for text in texts])


def _split(texts: Sequence[_Texts]) -> list[bytes]:
    lengths, joined = _join_texts(texts)
    ends = np.cumsum(lengths)
    starts = (ends - lengths).tolist()
    return [joined[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]


def _request_keys(blocks: Sequence[Block]) -> EventIdArray:
    digest = xxhash.xxh3_64_intdigest
    requests = _split([block.request_id for block in blocks])
    keys = [digest(request) if request else NO_REQUEST for request in requests]
    return np.array(keys, np.uint64)


def events_of(block: Block, names: NameCodes) -> list[Event]:
    """Return the events of a block as they were sent."""
    outcomes = dict(enumerate(names.outcomes))
    stages = dict(enumerate(names.stages))
    rows = zip(
        [EVENT_KINDS[code] for code in block.kind],
        _split([block.event_id]),
        _id_list(block.user_id),
        _id_list(block.item_id),
        _joined([block.event_time_ms], np.int64).tolist(),
        _split([block.request_id]),
        map(outcomes.get, block.outcome),
        _joined([block.value], np.float64).tolist(),
        map(stages.get, block.stage),
        strict=True,
    )
    return [
        Event(
            kind=kind,
            event_id=event_id.decode(),
            user_id=user_id,
            item_id=item_id,
            event_time_ms=time_ms,
            request_id=request_id.decode() or None,
            outcome=outcome,
            value=value,
            stage=stage,
        )
        for kind, event_id, user_id, item_id, time_ms, request_id, outcome, value, stage in rows
    ]


def _id_list(ids: bytes | _Texts) -> list[int] | list[str]:
    if isinstance(ids, bytes):
        return [int(value) for value in _joined([ids], np.int64).tolist()]
    return [text.decode() for text in _split([ids])]
