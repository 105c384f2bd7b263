"""The two-tower retrieval system.

The public names load their modules when they are first used, so that `import twotower` is cheap
and a serving process never meets torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from twotower.checkpoint import Checkpoint
    from twotower.config import Project, load_project
    from twotower.data.days import ImportedData
    from twotower.data.importing import import_tables
    from twotower.errors import TwoTowerError
    from twotower.evaluation import evaluate
    from twotower.index import SearchResult, VectorIndex, build_index, open_index
    from twotower.publishing.gates import Gate
    from twotower.publishing.generation import Generation
    from twotower.publishing.publisher import publish
    from twotower.publishing.store import ModelStore
    from twotower.serving.retriever import Answer, Candidate, Retriever
    from twotower.training.base_model import train_base_model
    from twotower.training.full_update import run_full_update

__all__ = [
    "Answer",
    "Candidate",
    "Checkpoint",
    "Gate",
    "Generation",
    "ImportedData",
    "ModelStore",
    "Project",
    "Retriever",
    "SearchResult",
    "TwoTowerError",
    "VectorIndex",
    "build_index",
    "evaluate",
    "import_tables",
    "load_project",
    "open_index",
    "publish",
    "run_full_update",
    "train_base_model",
]

_HOMES: Final = {
    "Answer": "serving.retriever",
    "Candidate": "serving.retriever",
    "Checkpoint": "checkpoint",
    "Gate": "publishing.gates",
    "Generation": "publishing.generation",
    "ImportedData": "data.days",
    "ModelStore": "publishing.store",
    "Project": "config",
    "Retriever": "serving.retriever",
    "SearchResult": "index",
    "TwoTowerError": "errors",
    "VectorIndex": "index",
    "build_index": "index",
    "evaluate": "evaluation",
    "import_tables": "data.importing",
    "load_project": "config",
    "open_index": "index",
    "publish": "publishing.publisher",
    "run_full_update": "training.full_update",
    "train_base_model": "training.base_model",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'twotower' has no attribute '{name}'")
    return getattr(import_module(f"twotower.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
