"""Random operations on every engine, compared after each with the exact scan of a plain dict."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from twotower.index import open_index
from twotower.index.choosing import NATIVE
from twotower.index.exact import ExactIndex
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import FloatArray, IntArray, VectorIndex
from twotower.index.native import NativeEngine

pytest.importorskip("faiss", reason="needs the extra 'serve'")

_LABELS = st.lists(st.integers(0, 60), max_size=25)
_SEEDS = st.integers(0, 1000)


def _vectors(num_items: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((num_items, 8)).astype(np.float32)


class IndexMachine(RuleBasedStateMachine):
    engine: NativeEngine | None = None

    @initialize(labels=_LABELS, seed=_SEEDS)
    def build(self, labels: list[int], seed: int) -> None:
        ids, vectors = np.array(labels, np.int64), _vectors(len(labels), seed)
        self.index = self._built(ids, vectors)
        self.model = dict(zip(labels, vectors, strict=True))

    def _built(self, ids: IntArray, vectors: FloatArray) -> VectorIndex:
        if self.engine is None:
            return ExactIndex.build(ids, vectors)
        index = FrozenIndex.build(self.engine, ids, vectors, min_native_items=1)
        index.effort = 64
        return index

    @rule(labels=_LABELS, seed=_SEEDS)
    def upsert(self, labels: list[int], seed: int) -> None:
        vectors = _vectors(len(labels), seed)
        self.index.upsert(np.array(labels, np.int64), vectors)
        self.model.update(zip(labels, vectors, strict=True))

    @rule(labels=_LABELS)
    def delete(self, labels: list[int]) -> None:
        self.index.delete(np.array(labels, np.int64))
        for label in labels:
            self.model.pop(label, None)

    @rule(mmap=st.booleans())
    def save_and_open(self, mmap: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.index.save(Path(folder) / "index")
            # The mapped files live on after their names are gone.
            self.index = open_index(Path(folder) / "index", mmap=mmap)

    @rule(excluded=_LABELS, allowed=st.none() | _LABELS, k=st.integers(1, 70), seed=_SEEDS)
    def search(self, excluded: list[int], allowed: list[int] | None, k: int, seed: int) -> None:
        queries = _vectors(2, seed)
        found = self.index.search(
            queries,
            k,
            [np.array(excluded, np.int64), np.zeros(0, np.int64)],
            None if allowed is None else np.array(allowed, np.int64),
        )
        for row, banned in enumerate((set(excluded), set[int]())):
            scores = {
                label: float(queries[row] @ vector)
                for label, vector in self.model.items()
                if label not in banned and (allowed is None or label in allowed)
            }
            self._compare(found.ids[row], found.scores[row], scores, k)

    def _compare(self, ids: IntArray, scores: FloatArray, true: dict[int, float], k: int) -> None:
        num = min(k, len(true))
        assert (ids[num:] == -1).all()
        assert len(set(ids[:num].tolist())) == num
        best = sorted(true.values(), reverse=True)[:num]
        assert np.allclose(scores[:num], best, atol=1e-5)
        assert np.allclose(scores[:num], [true[label] for label in ids[:num].tolist()], atol=1e-5)

    @invariant()
    def length_is_right(self) -> None:
        if hasattr(self, "index"):
            assert len(self.index) == len(self.model)


ENGINES: dict[str, NativeEngine | None] = {
    "exact": None,
    **{engine.name: engine for engine in NATIVE.values() if engine.name != "milvus"},
}


@pytest.mark.parametrize("name", ENGINES)
def test_random_operations(name: str) -> None:
    engine = ENGINES[name]
    if name in ("hnswlib", "scann") and find_spec(name) is None:
        pytest.skip(f"pip install 'twotower[{name}]'")
    machine: Any = type("Machine", (IndexMachine,), {"engine": engine})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
