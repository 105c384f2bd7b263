"""One interface, one file per engine; numpy in, numpy out.

An engine is added by one file, one entry in `_NATIVE`, one in `settings.EngineName`, and passing
`contract.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from twotower.errors import ConfigError, CorruptArtifact
from twotower.index.exact import ExactIndex, open_exact
from twotower.index.faiss import Flat, Hnsw, Ivf, IvfFlat, IvfPq
from twotower.index.frozen import FrozenIndex, open_frozen
from twotower.index.hnswlib import Hnswlib
from twotower.index.interface import (
    FloatArray,
    IntArray,
    SearchResult,
    TunableIndex,
    VectorIndex,
)
from twotower.index.milvus import Milvus
from twotower.index.native import NativeEngine
from twotower.index.settings import IndexSettings
from twotower.index.storage import read_header
from twotower.index.tuning import tune

__all__ = [
    "SearchResult",
    "TunableIndex",
    "VectorIndex",
    "build_index",
    "choose_engine",
    "open_index",
]

_NATIVE: Final[Mapping[str, NativeEngine]] = {
    engine.name: engine
    for engine in (Flat(), Ivf(), IvfFlat(), IvfPq(), Hnsw(), Hnswlib(), Milvus())
}
_ENGINES: Final = ("exact", *_NATIVE)


def choose_engine(engine: str, num_items: int, settings: IndexSettings) -> str:
    """Return the engine that `engine` stands for: "auto" is exact up to the settings' limit."""
    if engine != "auto":
        return engine
    return "exact" if num_items <= settings.exact_max_items else "faiss_ivf"


def build_index(
    engine: str,
    ids: IntArray,
    vectors: FloatArray,
    settings: IndexSettings,
    seed: int = 0,
    queries: FloatArray | None = None,
    k: int = 100,
    generation: str = "",
) -> VectorIndex:
    """Return an index of items `ids[N]`, `vectors[N, D]`.

    Args:
        engine: "auto", or one of `settings.EngineName`.
        queries: Real user vectors `float32[n, D]`, about 500: an approximate engine gets the
            smallest effort that reaches `settings.ann_recall_target` at `k` on them. Without any
            it keeps a generous one that nothing was measured with.
        k: Items that a search will ask for.
        generation: For a server's collection, which is named after it.

    Raises:
        ConfigError: there is no such engine.
        DataError: labels or vectors are refused.
        MissingExtra: the engine's package is not installed.
    """
    name = choose_engine(engine, len(ids), settings)
    if name not in _ENGINES:
        raise ConfigError(
            f"unknown index engine {engine!r}; known: auto, {', '.join(sorted(_ENGINES))}"
        )
    if name == "exact":
        return ExactIndex.build(ids, vectors)
    native = Milvus(settings.milvus, generation) if name == "milvus" else _NATIVE[name]
    index = FrozenIndex.build(native, ids, vectors, seed)
    if queries is not None and len(queries):
        tune(index, queries, k, settings.ann_recall_target)
    return index


def open_index(folder: Path, mmap: bool = True) -> VectorIndex:
    """Return a saved index; with `mmap` its vectors stay on disk, shared between processes.

    Only for a folder whose checksums were verified: a native loader trusts its file.

    Raises:
        CorruptArtifact: the folder is foreign, altered, or of an engine this version lacks.
    """
    header = read_header(folder)
    if header.engine not in _ENGINES:
        raise CorruptArtifact(
            f"the index in {folder} was not loaded: unknown engine {header.engine!r}, "
            f"known: {', '.join(sorted(_ENGINES))}"
        )
    if header.engine == "exact":
        return open_exact(folder, header, mmap)
    return open_frozen(_NATIVE[header.engine], folder, header, mmap)
