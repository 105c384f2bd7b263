"""One interface, one file per engine; numpy in, numpy out.

An engine is added by one file, one entry in `choosing.NATIVE`, one in `settings.EngineName`, and
passing `contract.py`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from twotower.errors import CorruptArtifact
from twotower.index.choosing import (
    ENGINES,
    NATIVE,
    Choice,
    ChosenIndex,
    Items,
    check_engine,
    choose_index,
)
from twotower.index.exact import open_exact
from twotower.index.frozen import open_frozen
from twotower.index.interface import (
    FloatArray,
    IntArray,
    SearchResult,
    TunableIndex,
    VectorIndex,
)
from twotower.index.milvus import point_alias
from twotower.index.milvus_server import drop_orphans
from twotower.index.settings import IndexSettings
from twotower.index.storage import read_header

__all__ = [
    "Choice",
    "ChosenIndex",
    "Items",
    "SearchResult",
    "TunableIndex",
    "VectorIndex",
    "build_index",
    "check_engine",
    "choose_index",
    "drop_orphans",
    "open_index",
    "point_alias",
]


def build_index(
    engine: str,
    ids: IntArray,
    vectors: FloatArray,
    settings: IndexSettings,
    seed: int = 0,
    queries: FloatArray | None = None,
    k: int = 100,
) -> VectorIndex:
    """Return an index of items `ids[N]`, `vectors[N, D]`.

    Args:
        engine: "auto", or one of `settings.EngineName`, instead of the settings' own.
        ids: labels of 0 or more.
        vectors: float32.
        settings: limits and targets.
        seed: of k-means, and of a graph's layers.
        queries: Real user vectors `float32[n, D]`, about 500: an approximate engine gets the
            smallest effort that reaches `settings.ann_recall_target` at `k` on them. Without any
            it keeps a generous one that nothing was measured with.
        k: items that a search will ask for.

    Raises:
        ConfigError, DataError, MissingExtra, NotReady: as `choose_index`.
    """
    wanted = msgspec.structs.replace(settings, engine=engine)
    return choose_index(Items(ids, vectors, queries, seed), wanted, k).built


def open_index(folder: Path, mmap: bool = True) -> VectorIndex:
    """Return a saved index; with `mmap` its vectors stay on disk, shared between processes.

    Only for a folder whose checksums were verified: a native loader trusts its file.

    Raises:
        CorruptArtifact: the folder is foreign, altered, or of an engine this version lacks.
    """
    header = read_header(folder)
    if header.engine not in ENGINES:
        raise CorruptArtifact(
            f"the index in {folder} was not loaded: unknown engine {header.engine!r}, "
            f"known: {', '.join(sorted(ENGINES))}"
        )
    if header.engine == "exact":
        return open_exact(folder, header, mmap)
    return open_frozen(NATIVE[header.engine], folder, header, mmap)
