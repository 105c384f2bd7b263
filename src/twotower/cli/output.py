"""Everything the command line writes goes through here.

Results go to stdout (`console`, `emit_json`), so that they can be piped; progress, logs and
errors go to stderr (`error_console`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Console
from rich.text import Text

from twotower.cli.log_lines import JsonLines
from twotower.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = [
    "PROCESS_VARIABLE",
    "LogProgress",
    "TerminalProgress",
    "configure",
    "console",
    "emit_json",
    "error_console",
    "print_error",
    "show_progress",
]

console: Final = Console(soft_wrap=True, highlight=False)
error_console: Final = Console(stderr=True, soft_wrap=True, highlight=False)

PROCESS_VARIABLE: Final = "TWOTOWER_PROCESS"
"""Holds the name of a process that `twotower up` started; its log lines carry it."""

_LOGGER: Final = logging.getLogger("twotower")
_LOG_INTERVAL_S: Final = 5.0


def configure(verbosity: int) -> None:
    """Sets what is shown besides results: below 0 only errors, 0 progress, above 0 debug lines.

    The log goes to stderr: text on a terminal, one JSON object a line elsewhere.
    """
    level = logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG
    _LOGGER.handlers[:] = [_log_handler()]
    _LOGGER.setLevel(level)
    _LOGGER.propagate = False


def _log_handler() -> logging.Handler:
    """Returns what writes the log: text on a terminal, JSON lines elsewhere."""
    process = os.environ.get(PROCESS_VARIABLE)
    if not error_console.is_terminal:
        lines = logging.StreamHandler()
        lines.setFormatter(JsonLines(process))
        return lines
    from rich.logging import RichHandler

    shown = RichHandler(console=error_console, show_path=False, log_time_format="%H:%M:%S")
    shown.setFormatter(logging.Formatter(f"{process}: %(message)s" if process else "%(message)s"))
    return shown


def emit_json(value: object) -> None:
    """Writes `value` (structs, named tuples, plain containers) to stdout as indented JSON."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    console.print(text, markup=False, emoji=False)


def print_error(message: str) -> None:
    """Writes one red line to stderr; line breaks of the message become spaces."""
    line = " ".join(message.split("\n"))
    error_console.print(Text.assemble(("error: ", "bold red"), (line, "red")))


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Gives long work something to report to: a bar on a terminal, log lines elsewhere.

    With `-q` it is silent. What was begun is closed when the block is left, also by an error.
    """
    if not _LOGGER.isEnabledFor(logging.INFO):
        yield SILENT
    elif error_console.is_terminal:
        bars = _rich_progress()
        with bars:
            yield TerminalProgress(bars)
    else:
        yield LogProgress()


def _rich_progress() -> RichProgress:
    """Builds the bar; rich.progress is imported only by commands that show one."""
    from rich import progress as columns

    return columns.Progress(
        columns.TextColumn("{task.description}"),
        columns.BarColumn(),
        columns.MofNCompleteColumn(),
        columns.TimeElapsedColumn(),
        columns.TextColumn("{task.fields[figures]}"),
        console=error_console,
    )


class TerminalProgress:
    """A bar for each task, with its speed and figures."""

    def __init__(self, bars: RichProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bars = bars
        self._clock = clock
        self._task: TaskID | None = None
        self._meter = _Meter("", None, "", clock)

    def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
        """Adds a bar; `total` None shows one that only moves."""
        self._meter = _Meter(task, total, unit, self._clock)
        self._task = self._bars.add_task(task, total=total, figures="")

    def advance(self, count: int = 1, **figures: float) -> None:
        """Moves the bar."""
        if self._task is None:
            return
        self._meter.add(count, figures)
        self._bars.update(self._task, completed=self._meter.done, figures=self._meter.readings())

    def end(self) -> None:
        """Leaves the bar standing, full."""
        if self._task is None:
            return
        self._bars.update(self._task, total=self._meter.done, completed=self._meter.done)
        self._task = None


class LogProgress:
    """A log line when a task begins, every `interval_s` and when it ends."""

    def __init__(
        self, interval_s: float = _LOG_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._meter = _Meter("", None, "", clock)
        self._next_line = 0.0

    def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
        """Writes that the task begins."""
        self._meter = _Meter(task, total, unit, self._clock)
        self._next_line = self._clock() + self._interval_s
        _LOGGER.info("begin task=%r total=%s unit=%s", task, total, unit)

    def advance(self, count: int = 1, **figures: float) -> None:
        """Writes a line when the last one is `interval_s` old."""
        self._meter.add(count, figures)
        now = self._clock()
        if now >= self._next_line:
            self._next_line = now + self._interval_s
            self._write("running")

    def end(self) -> None:
        """Writes the totals."""
        self._write("done")

    def _write(self, event: str) -> None:
        meter = self._meter
        _LOGGER.info(
            "%s task=%r done=%d total=%s %s",
            *(event, meter.task, meter.done, meter.total, meter.readings()),
        )


class _Meter:
    """Counts one task's units and remembers its latest figures."""

    def __init__(self, task: str, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        self.task = task
        self.total = total
        self.done = 0
        self._unit = unit
        self._clock = clock
        self._began = clock()
        self._figures: dict[str, float] = {}

    def add(self, count: int, figures: dict[str, float]) -> None:
        """Adds `count` units."""
        self.done += count
        self._figures.update(figures)

    def readings(self) -> str:
        """The speed and the figures, as `examples/s=91,200 loss=3.1416`."""
        seconds = max(self._clock() - self._began, 1e-9)
        figures = [f"{name}={value:.4f}" for name, value in self._figures.items()]
        return " ".join([f"{self._unit}/s={self.done / seconds:,.0f}", *figures])
