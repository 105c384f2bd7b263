"""A Milvus server as this package uses it: a collection an index, filled, loaded, left alone.

The only file that imports pymilvus. Every failure of the server is one `NotReady` with one line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, TypeVar

from twotower.errors import MissingExtra, NotReady
from twotower.index.interface import FloatArray
from twotower.index.settings import MilvusSettings

__all__ = [
    "asked",
    "collection_name",
    "connect",
    "drop",
    "drop_orphans",
    "fill",
    "load",
    "move_alias",
]

_T = TypeVar("_T")
_LOG: Final = logging.getLogger(__name__)

_LINKS: Final = 16
_BUILD_EFFORT: Final = 200
_BATCH_BYTES: Final = 8 << 20
"""Of vectors in one upsert: an eighth of what a server takes in one message."""
_TRIES: Final = 4
_FIRST_WAIT_S: Final = 0.25
_TIMEOUT_S: Final = 10.0


def drop_orphans(settings: MilvusSettings, generations: Collection[str]) -> list[str]:
    """Drop the collections of generations that are not there (any more); return their names.

    What a failed publish or a prune left goes here; only names with this project's prefix.

    Raises:
        NotReady: the server does not answer.
    """
    kept = {collection_name(settings.prefix, name) for name in generations}
    pattern = re.compile(re.escape(settings.prefix) + r"_g_[0-9]{6,12}")

    def drop_them(client: Any) -> list[str]:
        found = [name for name in client.list_collections() if pattern.fullmatch(name)]
        doomed = sorted(name for name in found if name not in kept)
        for name in doomed:
            client.drop_collection(name)
        return doomed

    client = connect(settings.uri)
    return asked(settings.uri, lambda: drop_them(client))


def move_alias(uri: str, alias: str, collection: str) -> None:
    """Let `alias` name `collection`: one step on the server, for whoever else searches there.

    Raises:
        NotReady: the server does not answer, or has no such collection.
    """
    client = connect(uri)

    def move() -> None:
        if _has_alias(client, alias):
            client.alter_alias(collection, alias)
        else:
            client.create_alias(collection, alias)

    asked(uri, move)


def collection_name(prefix: str, name: str) -> str:
    """Return the name of a generation's collection: letters, digits and low lines only."""
    return f"{prefix}_{name.replace('-', '_')}"


def fill(client: Any, name: str, vectors: FloatArray) -> None:
    """Make the collection, fill it in batches, build its index, load it and count it."""
    drop(client, name)  # of a publish that failed under the same name
    _create(client, name, vectors.shape[1])
    for start, end in _batches(vectors):
        rows = [{"id": row, "vector": vectors[row]} for row in range(start, end)]
        _upsert(client, name, rows)
        _LOG.info("index_upsert collection=%s rows=%d of=%d", name, end, len(vectors))
    client.flush(name)
    index = client.prepare_index_params()
    parameters = {"M": _LINKS, "efConstruction": _BUILD_EFFORT}
    index.add_index("vector", index_type="HNSW", metric_type="IP", params=parameters)
    client.create_index(name, index)  # waits until it is built
    found = load(client, name)
    if found != vectors.shape:
        raise NotReady(
            f"expected {vectors.shape} items and dimensions in collection '{name}', found {found}; "
            "it is dropped and nothing was published; publish again"
        )


def _create(client: Any, name: str, dimensions: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimensions)
    client.create_collection(name, schema=schema, consistency_level="Strong")


def _batches(vectors: FloatArray) -> Iterator[tuple[int, int]]:
    size = max(1, _BATCH_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), size):
        yield start, min(start + size, len(vectors))


def _upsert(client: Any, name: str, rows: list[dict[str, Any]]) -> None:
    """Try up to four times, waiting longer each time: an upsert may be repeated safely."""
    for tried in range(1, _TRIES):
        with contextlib.suppress(_failure()):
            client.upsert(name, rows)
            return
        _LOG.warning("index_upsert_again collection=%s tried=%d", name, tried)
        time.sleep(_FIRST_WAIT_S * 2**tried)
    client.upsert(name, rows)


def load(client: Any, name: str) -> tuple[int, int]:
    """Bring a collection into the server's memory; return its items and dimensions.

    Raises:
        NotReady: it is not there.
    """
    if not client.has_collection(name):
        raise NotReady(
            f"the Milvus server does not have collection '{name}'; it was not loaded; publish "
            "again, or roll back"
        )
    client.load_collection(name)
    fields = client.describe_collection(name)["fields"]
    dimensions = next(entry["params"]["dim"] for entry in fields if entry["name"] == "vector")
    return int(client.get_collection_stats(name)["row_count"]), int(dimensions)


def drop(client: Any, name: str) -> None:
    """Drop a collection if it is there."""
    if client.has_collection(name):
        client.drop_collection(name)


def _has_alias(client: Any, alias: str) -> bool:
    try:
        client.describe_alias(alias)
    except _failure():
        return False
    return True


def connect(uri: str) -> Any:
    """Return a client of the server at `uri`; a token is read from `TWOTOWER_MILVUS_TOKEN`.

    Raises:
        MissingExtra: pymilvus is not installed.
        NotReady: the server does not answer.
    """
    pymilvus = _pymilvus()
    token = os.environ.get("TWOTOWER_MILVUS_TOKEN", "")
    return asked(uri, lambda: pymilvus.MilvusClient(uri=uri, token=token, timeout=_TIMEOUT_S))


def asked(uri: str, action: Callable[[], _T]) -> _T:
    """Return what the server answers.

    Raises:
        NotReady: it does not, or it refuses; one line.
    """
    try:
        return action()
    except _failure() as error:
        raise NotReady(
            f"the Milvus server at {uri} did not do what was asked: "
            f"{getattr(error, 'message', error)}; nothing was changed here; look whether it runs, "
            "then try again"
        ) from error


def _failure() -> Any:
    return _pymilvus().exceptions.MilvusException


def _pymilvus() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pymilvus
    except ImportError as error:
        raise MissingExtra("pymilvus", "milvus", "this index engine") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs all that it raises
    return pymilvus
