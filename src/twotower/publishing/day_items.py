"""Items of the day: added with their features, withdrawn, restored; encoded by the live generation.

Whoever adds items encodes them first, so that a worker that sees the new register finds their
vectors. Where a generation has none yet, because it has just gone live, whoever comes first makes
them: the same bytes, whoever it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.features import EncodedFeatures
from twotower.data.ids import Id, as_id_array, decode_ids
from twotower.data.schema import IdArray
from twotower.errors import DataError
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.item_overlay import ItemVectors, read_item_vectors, write_item_vectors
from twotower.publishing.item_register import (
    DayItem,
    ItemRegister,
    Withdrawn,
    changing_register,
    write_register,
)

__all__ = [
    "Added",
    "add_items",
    "decode_items",
    "item_profile",
    "item_vectors",
    "restore_items",
    "withdraw_items",
]

FloatArray = npt.NDArray[np.float32]

_BREATH_ITEMS: Final = 32


class Added(NamedTuple):
    """What became of items that were to be added."""

    register: ItemRegister
    added: list[Id]
    known: list[Id]
    """The live generation returns them already; they were left as they are."""


def decode_items(content: bytes) -> list[DayItem]:
    """Return the items of a JSON array, or of one JSON object a line.

    Raises:
        DataError: it is neither; the line is named.
    """
    try:
        if content.lstrip()[:1] == b"[":
            return msgspec.json.decode(content, type=list[DayItem])
    except msgspec.MsgspecError as error:
        raise DataError(f"expected a JSON array of items: {error}; nothing was added") from None
    items = []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                items.append(msgspec.json.decode(line, type=DayItem))
            except msgspec.MsgspecError as error:
                raise DataError(
                    f'expected an item such as {{"item_id": 7, "features": {{}}}} in line '
                    f"{number}: {error}; nothing was added"
                ) from None
    return items


def add_items(
    data_path: Path, generation: Generation, encoder: Encoder, items: Sequence[DayItem]
) -> Added:
    """Add items, or replace the features of those that were added; all or none.

    Args:
        data_path: The project's data folder.
        generation: That is live.
        encoder: Its own.
        items: To add.

    Raises:
        ConfigError: a feature is none of the model's. Nothing was added.
        DataError: an ID is of the wrong kind, or longer than the index takes. Nothing was added.
        NotReady: somebody else does not end a change in time.
    """
    now_ms = int(time.time() * 1000)
    items = [
        msgspec.structs.replace(
            item, item_id=encoder.items.normal(item.item_id), added_ms=item.added_ms or now_ms
        )
        for item in items
    ]
    for item in items:
        encoder.encode_item(item.features)
    is_offered = _are_offered(generation, encoder, [item.item_id for item in items])
    new = [item for item, known in zip(items, is_offered, strict=True) if not known]
    with changing_register(data_path) as register:
        if new:
            every = [*register.added, *new]
            planned = ItemRegister(added_number=register.number + 1, added=every)
            item_vectors(data_path, generation, encoder, planned)
            register = write_register(data_path, register, added=every)
    known_ids = [item.item_id for item, known in zip(items, is_offered, strict=True) if known]
    return Added(register, [item.item_id for item in new], known_ids)


def withdraw_items(
    data_path: Path, encoder: Encoder, item_ids: Sequence[Id], reason: str = ""
) -> ItemRegister:
    """Keep items from everybody, now and in every later generation; unknown ones too.

    Raises:
        DataError: an ID is of the wrong kind. Nothing was withdrawn.
    """
    now_ms = int(time.time() * 1000)
    normal = [encoder.items.normal(item_id) for item_id in item_ids]
    entries = [Withdrawn(item_id=i, reason=reason, withdrawn_ms=now_ms) for i in normal]
    with changing_register(data_path) as register:
        return write_register(data_path, register, withdrawn=[*register.withdrawn, *entries])


def restore_items(data_path: Path, encoder: Encoder, item_ids: Sequence[Id]) -> ItemRegister:
    """Let everybody have withdrawn items again; others are ignored.

    Raises:
        DataError: an ID is of the wrong kind. Nothing was restored.
    """
    normal = {encoder.items.normal(item_id) for item_id in item_ids}
    with changing_register(data_path) as register:
        left = [entry for entry in register.withdrawn if entry.item_id not in normal]
        return write_register(data_path, register, withdrawn=left)


def item_vectors(
    data_path: Path, generation: Generation, encoder: Encoder, register: ItemRegister
) -> ItemVectors:
    """Return the register's items that a generation does not return by itself, encoded by it.

    Raises:
        CorruptArtifact: what was written before is damaged.
    """
    found = read_item_vectors(data_path, generation, register.added_number)
    if found is None:
        found = _encode(generation, encoder, register)
        write_item_vectors(data_path, generation, register.added_number, found)
    return found


def _encode(generation: Generation, encoder: Encoder, register: ItemRegister) -> ItemVectors:
    items = register.added
    is_offered = _are_offered(generation, encoder, [item.item_id for item in items])
    by_id = {item.item_id: item for item, known in zip(items, is_offered, strict=True) if not known}
    item_ids = np.unique(as_id_array(list(by_id), encoder.items.kind))
    vectors = np.zeros((len(item_ids), generation.manifest.vector_dim), np.float32)
    positions = encoder.items.positions_of(item_ids)
    for number, item_id in enumerate(decode_ids(item_ids)):
        position = int(positions[number])
        vectors[number] = encoder.item_vector(
            encoder.item_embedding(position),
            item_profile(encoder, by_id[item_id]),
            encoder.popularity_coordinate(position),
        )[0]
        if number % _BREATH_ITEMS == 0:
            time.sleep(0)  # whoever answers requests in this process gets the interpreter
    return ItemVectors(item_ids, vectors)


def item_profile(encoder: Encoder, item: DayItem) -> EncodedFeatures:
    """Return the features of an item as the generation takes them.

    Those that this model does not have are left out: the item may be of a day when it had them.
    """
    known = {field.name for field in encoder.item_features.fields}
    return encoder.encode_item({name: v for name, v in item.features.items() if name in known})


def _are_offered(
    generation: Generation, encoder: Encoder, item_ids: Sequence[Id]
) -> npt.NDArray[np.bool_]:
    """Return which items the generation's own index returns."""
    stored: IdArray = encoder.items.stored_form(item_ids)
    positions = encoder.items.positions_of(stored)
    return np.isin(positions, generation.array("corpus.npy"))
