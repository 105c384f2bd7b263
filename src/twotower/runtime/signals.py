"""Signals as something to wait for, whichever thread the kernel gives them to.

A pipe is written by the interpreter's own handler. Blocking the signals and fetching them would
not do: libraries start threads that do not block them, and one of those would die of SIGTERM and
take the process with it.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Signals"]

_PIPE_BYTES: Final = 4096


class Signals:
    """Takes over some signals inside a `with` block of the main thread."""

    def __init__(self, numbers: Iterable[int]) -> None:
        """Nothing is taken over yet."""
        self._numbers = tuple(numbers)

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _note) for number in self._numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reading)
        os.close(self._writing)

    def wait(self, timeout_s: float) -> list[int]:
        """Return the signals that came since the last call, waiting for the first one."""
        if not select.select([self._reading], [], [], max(0.0, timeout_s))[0]:
            return []
        return [*os.read(self._reading, _PIPE_BYTES)]


def _note(number: int, frame: object) -> None:
    """Do nothing: the interpreter has written the number into the pipe already."""
