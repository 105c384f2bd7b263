"""ScaNN: lists with codes that are learned for inner products, the quickest of all our trials.

Its package has wheels for Linux alone, cannot be mapped from the disk, and cannot be imported
beside another TensorFlow than the one it was built for; TensorFlow is hidden while it is imported,
which it takes as "not installed". It keeps codes only: the best of them are scored anew with our
vectors.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from twotower.durable import digest_file
from twotower.errors import CorruptArtifact, MissingExtra
from twotower.index.interface import PADDING, FloatArray, IntArray
from twotower.index.native import (
    NativeEngine,
    NativeSearch,
    doubling,
    fewest_lists,
    overfetched,
    thinned,
)

__all__ = ["Scann"]

_DIMENSIONS_A_CODE: Final = 2
_DIGESTS: Final = "digests.json"
_THRESHOLD: Final = 0.2
"""From which similarity on errors along the vector count more (arXiv 1908.10396)."""


class Scann(NativeEngine):
    """About 4 sqrt(M) lists, `effort` of them searched; 4 bits for every two dimensions."""

    name: ClassVar[str] = "scann"
    file_name: ClassVar[str] = "native.scann"
    fewest_items: ClassVar[int] = 100
    candidates: ClassVar[float] = 6

    def build(self, vectors: FloatArray, seed: int) -> Any:
        """See `NativeEngine.build`; ScaNN takes no seed."""
        leaves = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 64))
        builder = _load().builder(vectors, 100, "dot_product")
        builder = builder.tree(
            leaves, max(1, leaves // 10), training_sample_size=min(len(vectors), 250_000)
        )
        scored = builder.score_ah(_DIMENSIONS_A_CODE, anisotropic_quantization_threshold=_THRESHOLD)
        return _Searcher(scored.build(), len(vectors), leaves)

    def efforts(self, native: Any) -> Sequence[int]:
        """See `NativeEngine.efforts`: powers of two up to all lists."""
        return doubling(fewest_lists(native.leaves, native.num_rows), native.leaves)

    def search(self, native: Any, queries: FloatArray, how: NativeSearch) -> IntArray:
        """See `NativeEngine.search`; what may not be returned is found and left out."""
        depth = overfetched(how, native.num_rows)
        if not len(queries):
            return np.zeros((0, depth), np.int64)
        found, scores = native.searcher.search_batched(
            queries,
            final_num_neighbors=depth,
            pre_reorder_num_neighbors=depth,
            leaves_to_search=min(how.effort, native.leaves),
        )
        rows = np.where(np.isfinite(scores), np.asarray(found, np.int64), PADDING)
        return thinned(rows, how)

    def write(self, native: Any, path: Path) -> None:
        """See `NativeEngine.write`; a folder."""
        path.mkdir()
        try:
            native.searcher.serialize(str(path), relative_path=True)
        except RuntimeError as error:
            raise OSError(errno.EIO, f"ScaNN could not write: {error}", str(path)) from error
        (path / _DIGESTS).write_bytes(msgspec.json.encode(_digests(path)))

    def open(self, path: Path, mmap: bool, shape: tuple[int, int]) -> Any:
        """See `NativeEngine.open`; always loaded, whatever `mmap` says."""
        _check(path)
        try:
            searcher = _load().load_searcher(str(path))
        except (RuntimeError, ValueError, OSError) as error:
            raise CorruptArtifact(f"{path} was not loaded: {error}; publish it again") from error
        leaves = max(1, min(int(4 * shape[0] ** 0.5), shape[0] // 64))
        return _Searcher(searcher, shape[0], leaves)


def _digests(path: Path) -> dict[str, str]:
    names = sorted(entry.name for entry in path.iterdir() if entry.name != _DIGESTS)
    return {name: digest_file(path / name)[1] for name in names}


def _check(path: Path) -> None:
    """Refuse altered files: ScaNN takes whatever it is given, and answers accordingly."""
    try:
        expected = msgspec.json.decode((path / _DIGESTS).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptArtifact(f"{path} was not loaded: {error}; publish it again") from error
    if expected != _digests(path):
        raise CorruptArtifact(f"{path} was not loaded: a file was altered; publish it again")


class _Searcher:
    """A searcher and its sizes, which it does not tell."""

    def __init__(self, searcher: Any, num_rows: int, leaves: int) -> None:
        self.searcher = searcher
        self.num_rows = num_rows
        self.leaves = leaves


def _load() -> Any:
    """Return ScaNN's own module, without its TensorFlow operations."""
    if "scann.scann_ops.py.scann_ops_pybind" in sys.modules:
        return sys.modules["scann.scann_ops.py.scann_ops_pybind"]
    tensorflow = sys.modules.get("tensorflow")
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise MissingExtra("scann", "scann", "this index engine") from error
    finally:
        del sys.modules["tensorflow"]
        if tensorflow is not None:
            sys.modules["tensorflow"] = tensorflow
    return scann_ops_pybind
