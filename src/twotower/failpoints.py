"""Named places where a test can kill the process: inert unless `TWOTOWER_FAILPOINT` is set.

`TWOTOWER_FAILPOINT=<name>` kills the process with SIGKILL when it reaches that place;
`<name>:3` at the third time; `*:7` at the seventh place of any name. Nothing can be caught and
nothing is flushed, as in a power cut.
"""

from __future__ import annotations

import os
import signal

__all__ = ["VARIABLE", "failpoint"]

VARIABLE = "TWOTOWER_FAILPOINT"
_reached: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Kill this process here if `TWOTOWER_FAILPOINT` says so; do nothing otherwise."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    target, _, count = wanted.partition(":")
    if target not in (name, "*"):
        return
    _reached[target] = _reached.get(target, 0) + 1
    if _reached[target] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
