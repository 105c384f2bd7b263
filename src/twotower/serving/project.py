"""What a server knows of its project besides how to serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from twotower.publishing.activation import Activation
from twotower.serving.settings import CollectorSettings

__all__ = ["ServedProject", "tell_nobody"]


def tell_nobody(activation: Activation) -> None:
    """Do nothing."""


class ServedProject(NamedTuple):
    """A project's data and what stands beside its server."""

    data_path: Path
    positive_outcomes: Sequence[str] = ("click",)
    """Outcomes of the event log that count as clicks."""
    collector: CollectorSettings = CollectorSettings()
    """Where the process listens that takes events."""
    announce: Callable[[Activation], object] = tell_nobody
    """Called with what a request made live, as the commands tell a vector server."""
