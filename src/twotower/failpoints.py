"""Named places where a test can end the process: inert unless `TWOTOWER_FAILPOINT` is set.

`TWOTOWER_FAILPOINT=<name>` kills the process with SIGKILL when it reaches that place;
`<name>:3` at the third time; `*:7` at the seventh place of any name. Nothing can be caught and
nothing is flushed, as in a power cut. `<name>:3:full` fails there as a full disk would, and
`<name>:3:stop` stops the process until somebody sends it SIGCONT.
"""

from __future__ import annotations

import errno
import os
import signal

__all__ = ["VARIABLE", "failpoint"]

VARIABLE = "TWOTOWER_FAILPOINT"
_reached: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Kill, fail or stop here if `TWOTOWER_FAILPOINT` says so; do nothing otherwise."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    target, count, action = (*wanted.split(":"), "", "")[:3]
    if target not in (name, "*"):
        return
    _reached[target] = _reached.get(target, 0) + 1
    if _reached[target] != int(count or 1):
        return
    if action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)
