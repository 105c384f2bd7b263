"""Settings of the vector index."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["EngineName", "IndexSettings", "MilvusSettings"]

NativeName = Literal[
    "faiss_flat",
    "faiss_hnsw",
    "faiss_ivf",
    "faiss_ivf_flat",
    "faiss_ivf_pq",
    "hnswlib",
    "scann",
]
EngineName = Literal[
    "auto",
    "exact",
    "faiss_flat",
    "faiss_hnsw",
    "faiss_ivf",
    "faiss_ivf_flat",
    "faiss_ivf_pq",
    "hnswlib",
    "milvus",
    "scann",
]


class MilvusSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The server of `engine = "milvus"`; a token is read from TWOTOWER_MILVUS_TOKEN."""

    uri: str = "http://127.0.0.1:19530"
    """Where the server listens."""
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")] = "twotower"
    """Of its collections, `<prefix>_g_000001`, and of the alias `<prefix>_live`: one a project."""
    when_lost: Literal["refuse", "scan"] = "refuse"
    """When the server does not answer a search: an error, or a counted scan of local vectors."""


class IndexSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which engine searches the item vectors."""

    engine: EngineName = "auto"
    """auto: exact up to `exact_max_items` items; above, what `auto_engines` are measured to be."""
    exact_max_items: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    """Largest corpus that auto searches exactly."""
    auto_engines: tuple[NativeName, ...] = ("faiss_ivf", "hnswlib", "scann")
    """What auto builds and tunes if installed; the quickest that reaches the target is kept."""
    ann_recall_target: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95
    """Recall of the approximate search against the exact one that its setting must reach."""
    filtered_recall_target: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.99
    """The same where conditions allow half of the items: they get an effort of their own."""
    milvus: MilvusSettings = MilvusSettings()
