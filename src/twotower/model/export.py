"""The towers as ONNX graphs, built node by node: the same bytes for the same parameters.

ID and history rows are looked up outside the graphs, so an update of ID rows needs no new graph;
the feature tables, frozen within the day, are inside. Inputs of width 0 are left out.
Legend: `B` inputs, `F` categorical fields, `M` numeric, `G` multi-valued of up to `L` values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from twotower.model.embedding_table import EmbeddingTable
from twotower.model.towers import FeatureShape, Tower, TwoTower

__all__ = ["export_item_tower", "export_user_tower"]

_OPSET = 17
_IR_VERSION = 8


@dataclass
class _Graph:
    """Nodes, inputs and constants gathered so far."""

    nodes: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def split(self, source: str, sizes: str, outputs: list[str], axis: int) -> list[str]:
        self.nodes.append(helper.make_node("Split", [source, sizes], outputs, axis=axis))
        return outputs

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def input(self, name: str, shape: list[int | str], *, integer: bool = False) -> str:
        kind = TensorProto.INT64 if integer else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["B", *shape]))
        return name


def export_user_tower(
    model: TwoTower, shape: FeatureShape, *, has_history: bool, multi_width: int
) -> bytes:
    """Return the user tower as a serialised ONNX graph with the output `vector`, `[B, D]`."""
    graph = _Graph()
    parts = [graph.input("id_embedding", [model.tables["user_id"].dim])]
    if has_history:
        parts.append(graph.input("history_embedding", [model.tables["history"].dim]))
    parts += _features(graph, model.tables["user_feature"], shape, multi_width)
    return _finish(graph, model.user_tower, parts, "user_tower")


def export_item_tower(model: TwoTower, shape: FeatureShape, *, multi_width: int) -> bytes:
    """Return the item tower as a serialised ONNX graph with the output `vector`, `[B, D]`."""
    graph = _Graph()
    parts = [graph.input("id_embedding", [model.tables["item_id"].dim])]
    parts += _features(graph, model.tables["item_feature"], shape, multi_width)
    return _finish(graph, model.item_tower, parts, "item_tower")


def _features(
    graph: _Graph, table: EmbeddingTable, shape: FeatureShape, multi_width: int
) -> list[str]:
    parts = []
    if shape.num_categorical:
        graph.constant("feature_table", table.weight.numpy())
        rows = graph.input("categorical", [shape.num_categorical], integer=True)
        gathered = graph.add("Gather", ["feature_table", rows], "categorical_rows", axis=0)
        parts.append(_flatten(graph, gathered, "categorical_flat"))
    if shape.num_multi:
        graph.input("multi", [shape.num_multi, multi_width], integer=True)
        parts.append(_flatten(graph, _multi_mean(graph, table.weight.numpy()), "multi_flat"))
    if shape.num_numeric:
        parts.append(graph.input("numeric", [2 * shape.num_numeric]))
    return parts


def _multi_mean(graph: _Graph, table: npt.NDArray[np.float32]) -> str:
    """Mean embedding of the present values of each multi-valued field, `[B, G, dim]`.

    Padding, -1, is the last row of a table of its own, zeros; in the last column every other row
    has a 1, so one sum gives the total and how many values there are. Few operators: at one row, a
    graph costs what they cost to call.
    """
    counted = np.pad(np.column_stack([table, np.ones(len(table), np.float32)]), ((0, 1), (0, 0)))
    graph.constant("counted_table", counted)
    axis = graph.constant("value_axis", np.array([2], np.int64))
    sizes = graph.constant("sizes", np.array([table.shape[1], 1], np.int64))
    values = graph.add("Gather", ["counted_table", "multi"], "multi_values", axis=0)
    summed = graph.add("ReduceSum", [values, axis], "multi_summed", keepdims=0)
    total, count = graph.split(summed, sizes, ["multi_total", "multi_count"], axis=2)
    return graph.add("Div", [total, count], "multi_mean")


def _flatten(graph: _Graph, source: str, output: str) -> str:
    return graph.add("Flatten", [source], output, axis=1)


def _finish(graph: _Graph, tower: Tower, parts: list[str], name: str) -> bytes:
    current = graph.add("Concat", parts, "tower_input", axis=1)
    layers = list(tower.linear_layers())
    for number, layer in enumerate(layers):
        weight = graph.constant(f"weight_{number}", layer.weight.detach().numpy())
        bias = graph.constant(f"bias_{number}", layer.bias.detach().numpy())
        current = graph.add("Gemm", [current, weight, bias], f"linear_{number}", transB=1)
        if number < len(layers) - 1:
            current = graph.add("Relu", [current], f"hidden_{number}")
    if tower.skip is not None:
        weight = graph.constant("weight_skip", tower.skip.weight.detach().numpy())
        current = graph.add("Gemm", ["tower_input", weight, current], "output", transB=1)
    graph.add("LpNormalization", [current], "vector", axis=1, p=2)
    output = helper.make_tensor_value_info(
        "vector", TensorProto.FLOAT, ["B", layers[-1].out_features]
    )
    made = helper.make_graph(graph.nodes, name, graph.inputs, [output], graph.constants)
    return _serialise(helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)]))


def _serialise(model: ModelProto) -> bytes:
    model.ir_version = _IR_VERSION
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
