"""PromQL as far as our alerts go: every range has two samples, its first and its last.

Enough to see a rule fire and stay silent; what a real Prometheus does beyond that (staleness,
extrapolation, many-to-one matching) is not here, and an expression that needs it is refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import promql_parser as promql

__all__ = ["Samples", "evaluate", "sample"]

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
_ARITHMETIC: Final[dict[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else float("nan"),
}
_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    **{"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge},
    **{"==": operator.eq, "!=": operator.ne},
}
_SUMS: Final[dict[str, Callable[[list[float]], float]]] = {"sum": sum, "min": min, "max": max}


class Samples(NamedTuple):
    """Sample -> its value at the start and at the end of every range; today's and yesterday's."""

    now_s: float
    today: Mapping[tuple[str, Labels], tuple[float, float]]
    yesterday: Mapping[tuple[str, Labels], tuple[float, float]]


def sample(text: str) -> tuple[str, Labels]:
    """Name and labels of a sample as it is written: `name{label="value"}`."""
    name, _, labels = text.partition("{")
    return name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))


def evaluate(expression: str, samples: Samples) -> Vector:
    """Return what an alert's expression is true of."""
    found = _value(promql.parse(expression), samples)
    assert isinstance(found, dict), "an alert's expression gives a vector"
    return found


def _value(node: Any, samples: Samples) -> Vector | float:
    if isinstance(node, promql.NumberLiteral):
        return float(node.val)
    if isinstance(node, promql.ParenExpr):
        return _value(node.expr, samples)
    if isinstance(node, promql.VectorSelector):
        return {labels: now for labels, (_, now) in _selected(node, samples).items()}
    if isinstance(node, promql.Call):
        return _called(node, samples)
    if isinstance(node, promql.AggregateExpr):
        return _aggregated(node, samples)
    assert isinstance(node, promql.BinaryExpr), f"{type(node).__name__} is not known here"
    return _combined(node, _value(node.lhs, samples), _value(node.rhs, samples))


def _selected(node: Any, samples: Samples) -> dict[Labels, tuple[float, float]]:
    source = samples.yesterday if node.offset else samples.today
    return {
        labels: values
        for (name, labels), values in source.items()
        if name == node.name and all(_fits(dict(labels), one) for one in node.matchers.matchers)
    }


def _fits(labels: dict[str, str], matcher: Any) -> bool:
    value = labels.get(matcher.name, "")
    if matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe):
        is_it = re.fullmatch(matcher.value, value) is not None
    else:
        is_it = value == matcher.value
    return is_it == (matcher.op in (promql.MatchOp.Re, promql.MatchOp.Equal))


def _called(node: Any, samples: Samples) -> Vector | float:
    name = node.func.name
    if name == "time":
        return samples.now_s
    assert name in ("increase", "rate", "deriv"), f"{name} is not known here"
    (argument,) = node.args
    seconds = 1.0 if name == "increase" else argument.range.total_seconds()
    found = _selected(argument.vector_selector, samples)
    return {labels: (after - before) / seconds for labels, (before, after) in found.items()}


def _aggregated(node: Any, samples: Samples) -> Vector:
    groups: dict[Labels, list[float]] = {}
    inner = _value(node.expr, samples)
    assert isinstance(inner, dict)
    for labels, value in inner.items():
        kept = set(node.modifier.labels)
        groups.setdefault(frozenset(pair for pair in labels if pair[0] in kept), []).append(value)
    return {labels: _SUMS[str(node.op)](values) for labels, values in groups.items()}


def _combined(node: Any, left: Vector | float, right: Vector | float) -> Vector | float:
    symbol = str(node.op)
    if not isinstance(left, dict) and not isinstance(right, dict):
        return _ARITHMETIC[symbol](left, right)
    matching = node.modifier.matching if node.modifier else None
    kept = set(matching.labels) if matching else None

    def key(labels: Labels) -> Labels:
        return labels if kept is None else frozenset(p for p in labels if p[0] in kept)

    if symbol in ("and", "or", "unless"):
        assert isinstance(left, dict)
        assert isinstance(right, dict)
        return _set_operation(symbol, left, right, key)
    pairs: list[tuple[Labels, float, float]] = []
    if isinstance(left, dict) and isinstance(right, dict):
        others = {key(labels): value for labels, value in right.items()}
        assert len(others) == len(right), "several samples on the right match one"
        pairs = [(own, v, others[key(own)]) for own, v in left.items() if key(own) in others]
    elif isinstance(left, dict):
        assert not isinstance(right, dict)
        pairs = [(labels, value, right) for labels, value in left.items()]
    else:
        assert isinstance(right, dict)
        pairs = [(labels, left, value) for labels, value in right.items()]
    if symbol in _COMPARISONS:
        return {labels: one for labels, one, other in pairs if _COMPARISONS[symbol](one, other)}
    return {labels: _ARITHMETIC[symbol](one, other) for labels, one, other in pairs}


def _set_operation(
    symbol: str, left: Vector, right: Vector, key: Callable[[Labels], Labels]
) -> Vector:
    others, own = {key(labels) for labels in right}, {key(labels) for labels in left}
    if symbol == "or":
        return {**{labels: v for labels, v in right.items() if key(labels) not in own}, **left}
    return {labels: v for labels, v in left.items() if (key(labels) in others) == (symbol == "and")}
