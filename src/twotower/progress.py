"""What long work tells of itself while it runs: the one protocol, and the silent one.

Training and publishing call it; who watches (a terminal, a log file, nobody) is decided at the
outer edge, so that no inner module knows a console.
"""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["SILENT", "Progress", "SilentProgress"]


class Progress(Protocol):
    """Told about one task at a time, from the thread that does the work.

    The calls of a task are `begin`, any number of `advance`, `end`. A task that fails need not
    call `end`: whoever made the progress closes it.
    """

    def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
        """Starts a task of `total` units; None where their number is not known."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """Counts `count` more units as done; `figures` are current readings, as `loss=0.41`."""

    def end(self) -> None:
        """Ends the task that the last `begin` started."""


class SilentProgress:
    """Watched by nobody: the default of every function that takes a progress."""

    def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
        """Does nothing."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """Does nothing."""

    def end(self) -> None:
        """Does nothing."""


SILENT: Final = SilentProgress()
