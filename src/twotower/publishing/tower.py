"""One tower as an ONNX graph: the vectors of many entities, or of one as fast as that goes.

Legend: `n` entities, `D` vector dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.errors import MissingExtra

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Tower"]

FloatArray = npt.NDArray[np.float32]


class _Bound(NamedTuple):
    """Memory that the graph reads from and writes to, of one thread."""

    inputs: Mapping[str, npt.NDArray[Any]]
    output: FloatArray
    binding: Any


class Tower:
    """One graph; inputs of width 0 are left out of it. Safe for many threads."""

    def __init__(self, graph: bytes, threads: int) -> None:
        """Load the graph.

        Raises:
            MissingExtra: onnxruntime is not installed.
        """
        self._session = _session(graph, threads)
        self._inputs = self._session.get_inputs()
        self._local = threading.local()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
        """Return `[n, D]` from those of `inputs` that the graph has; whole numbers are widened."""
        wanted = {node.name: _widened(inputs[node.name]) for node in self._inputs}
        vectors: FloatArray = self._session.run(["vector"], wanted)[0]
        return vectors

    def run_one(self, inputs: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
        """Return what `run` returns of one entity, `[1, D]`; the axis of 1 may be left out.

        What goes in and out stays in one place, which costs less than half of handing it over.
        """
        bound: _Bound | None = getattr(self._local, "bound", None)
        if bound is None:
            bound = self._local.bound = self._bind()
        for name, place in bound.inputs.items():
            place[...] = inputs[name]
        self._session.run_with_iobinding(bound.binding)
        return bound.output.copy()

    def _bind(self) -> _Bound:
        from onnxruntime import OrtValue

        inputs = {node.name: _one_of(node) for node in self._inputs}
        output = _one_of(self._session.get_outputs()[0])
        binding = self._session.io_binding()
        for name, place in inputs.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(place))
        binding.bind_ortvalue_output("vector", OrtValue.ortvalue_from_numpy(output))
        return _Bound(inputs, output, binding)


def _one_of(node: Any) -> npt.NDArray[Any]:
    """Return room for one entity's tensor."""
    kind = np.int64 if node.type == "tensor(int64)" else np.float32
    return np.zeros((1, *node.shape[1:]), kind)


def _widened(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.int64) if array.dtype == np.int32 else array


def _session(graph: bytes, threads: int) -> InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "serve", "running a tower") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
