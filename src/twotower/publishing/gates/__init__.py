"""The measured conditions that can refuse an activation: one file a gate.

Every module of this folder that defines a `Gate` is one; a new gate is one new file. A refused
generation is kept, whole, so that it can be looked at; only an activation with `--force`, which
the audit names, makes it live. See docs/gates.md.
"""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

from twotower.publishing.gates.finite import check_finite
from twotower.publishing.gates.gate import Gate, Measured, at_least, at_most, not_measured
from twotower.publishing.settings import GateSettings

__all__ = [
    "Gate",
    "Measured",
    "at_least",
    "at_most",
    "check_finite",
    "default_gates",
    "not_measured",
]


def default_gates(settings: GateSettings) -> list[Gate]:
    """Return every gate of this folder, in the order of their files' names."""
    modules = [
        import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    ]
    return [gate.of(settings) for module in modules for gate in _gates_of(module.__dict__)]


def _gates_of(names: dict[str, object]) -> list[type[Gate]]:
    """Return the gates that a module defines, not those that it imports."""
    return [
        found
        for found in names.values()
        if isinstance(found, type)
        and issubclass(found, Gate)
        and not inspect.isabstract(found)
        and found.__module__ == names["__name__"]
    ]
