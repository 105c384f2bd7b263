"""What the server imports before it forks, so that its workers share the pages."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from twotower.errors import MissingExtra, TwoTowerError

__all__ = ["import_engines", "import_index_engine"]

_LOGGER: Final = logging.getLogger("twotower")
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def import_engines(trace_share: float) -> None:
    """Import, before forking, what every worker needs and what starts no threads."""
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    try:
        import twotower.serving.worker
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", "the server") from error
    from twotower.serving.tracing import check_tracing

    check_tracing(trace_share)
    _LOGGER.debug("imported module=%s", twotower.serving.worker.__name__)


def import_index_engine(data_path: Path) -> None:
    """Import Faiss, which starts no threads, where what is live needs it.

    Whatever is wrong with what is live is said by the workers, which load it.
    """
    from twotower.index.faiss import load_faiss
    from twotower.publishing.store import ModelStore

    with contextlib.suppress(TwoTowerError, OSError):
        generation, _ = ModelStore(data_path).open_live(verify=False)
        if generation.manifest.index.engine.startswith("faiss"):
            load_faiss()
