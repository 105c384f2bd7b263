"""Milvus: the vectors of a generation in a collection of its own, on another machine.

The server proposes candidates; labels, changes, filters and true scores are `FrozenIndex`'s, whose
vectors lie beside the index and stay on the disk until they are scored. So no answer is short,
whatever the server's graph leaves out, and a collection never changes once it is loaded. Rows are
the primary keys. Consistency is "Strong" while a collection is filled, so that what was counted is
what is searched, and "Eventually" afterwards, because nothing changes any more.

Tested against `milvus-lite server`, which speaks the protocol; its speed says nothing about Milvus.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from twotower.errors import CorruptArtifact, NotReady
from twotower.index.interface import PADDING, FloatArray, IntArray
from twotower.index.milvus_server import (
    asked,
    collection_name,
    connect,
    drop,
    fill,
    load,
    move_alias,
)
from twotower.index.native import NativeEngine, NativeSearch, doubling, overfetched, thinned
from twotower.index.settings import MilvusSettings

__all__ = ["Milvus", "Remote", "point_alias"]

_LOG: Final = logging.getLogger(__name__)

_MOST_RETURNED: Final = 16_384
"""Most that Milvus returns of one query."""
_MOST_NAMED: Final = 2_000
"""Rows that a filter expression may name; where more are masked, more are fetched."""
_QUERIES_AT_ONCE: Final = 256


class _Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is on the disk: where the collection is. A token comes from the environment."""

    format_version: int = 1
    uri: str
    collection: str
    when_lost: str


@dataclass(eq=False)
class Remote:
    """A loaded collection."""

    client: Any
    pointer: _Pointer
    num_rows: int
    lost_searches: int = field(default=0)
    """Searches that the server did not answer and that `when_lost = "scan"` answered."""


class Milvus(NativeEngine):
    """A graph (HNSW) in a Milvus collection; `effort` candidates are kept in view."""

    name: ClassVar[str] = "milvus"
    file_name: ClassVar[str] = "native.milvus"

    def __init__(self, settings: MilvusSettings | None = None, generation: str = "") -> None:
        self._settings = settings or MilvusSettings()
        self._generation = generation

    def build(self, vectors: FloatArray, seed: int) -> Remote:
        """See `NativeEngine.build`: filled, indexed, loaded and counted, or dropped again."""
        settings = self._settings
        client = connect(settings.uri)
        name = collection_name(settings.prefix, self._generation or secrets.token_hex(8))
        try:
            asked(settings.uri, lambda: fill(client, name, vectors))
        except BaseException:
            with contextlib.suppress(NotReady):  # else the next publish drops it
                asked(settings.uri, lambda: drop(client, name))
            raise
        pointer = _Pointer(uri=settings.uri, collection=name, when_lost=settings.when_lost)
        return Remote(client, pointer, len(vectors))

    def efforts(self, native: Remote) -> Sequence[int]:
        """See `NativeEngine.efforts`: doubling up to 1,024."""
        return doubling(16, min(1024, max(16, native.num_rows)))

    def search(self, native: Remote, queries: FloatArray, how: NativeSearch) -> IntArray:
        """See `NativeEngine.search`; a few masked rows are named in a filter expression.

        Raises:
            NotReady: the server does not answer, and `when_lost` is "refuse".
        """
        gone = () if how.mask is None else how.mask.hidden_rows()
        named = 0 < len(gone) <= _MOST_NAMED
        depth = how.depth if named else overfetched(how, native.num_rows)
        expression = f"id not in [{','.join(map(str, gone))}]" if named else ""
        depth = min(depth, _MOST_RETURNED)
        try:
            rows = asked(
                native.pointer.uri, lambda: _search(native, queries, depth, how.effort, expression)
            )
        except NotReady as error:
            if native.pointer.when_lost != "scan":
                raise
            native.lost_searches += 1
            _LOG.warning("index_lost searches=%d why=%r", native.lost_searches, str(error))
            return np.full((len(queries), depth), PADDING, np.int64)
        return thinned(rows, how)

    def lost_searches(self, native: Remote) -> int:
        """See `NativeEngine.lost_searches`."""
        return native.lost_searches

    def write(self, native: Remote, path: Path) -> None:
        """See `NativeEngine.write`: where the collection is; its vectors stay there."""
        path.write_bytes(msgspec.json.encode(native.pointer))

    def open(self, path: Path, mmap: bool, shape: tuple[int, int]) -> Remote:
        """See `NativeEngine.open`.

        Raises:
            NotReady: the server does not answer, or does not have the collection any more.
        """
        try:
            pointer = msgspec.json.decode(path.read_bytes(), type=_Pointer)
        except (OSError, msgspec.MsgspecError) as error:
            raise CorruptArtifact(f"{path} was not loaded: {error}; publish it again") from error
        client = connect(pointer.uri)
        found = asked(pointer.uri, lambda: load(client, pointer.collection))
        if found != shape:
            raise CorruptArtifact(
                f"{path} was not loaded: expected {shape[0]} items of {shape[1]} dimensions in "
                f"collection '{pointer.collection}' at {pointer.uri}, found {found}; publish again"
            )
        return Remote(client, pointer, shape[0])


def point_alias(folder: Path, prefix: str) -> str | None:
    """Let the alias `<prefix>_live` name the collection of a saved index; return the alias.

    None where the index is no Milvus one. This package names collections and never reads the
    alias, so that the user tower of one generation never meets the vectors of another.

    Raises:
        NotReady: the server does not answer, or has the collection no more.
    """
    path = folder / Milvus.file_name
    if not path.exists():
        return None
    pointer = msgspec.json.decode(path.read_bytes(), type=_Pointer)
    move_alias(pointer.uri, f"{prefix}_live", pointer.collection)
    return f"{prefix}_live"


def _search(
    native: Remote, queries: FloatArray, depth: int, effort: int, expression: str
) -> IntArray:
    rows = np.full((len(queries), depth), PADDING, np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        answers = native.client.search(
            native.pointer.collection,
            queries[start : start + _QUERIES_AT_ONCE],
            limit=depth,
            filter=expression,
            search_params={"metric_type": "IP", "params": {"ef": max(effort, depth)}},
            output_fields=["id"],
            consistency_level="Eventually",
        )
        for row, hits in enumerate(answers, start):
            found = [hit["id"] for hit in hits]
            rows[row, : len(found)] = found
    return rows
