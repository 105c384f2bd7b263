"""Ties a process to the one that started it: it dies when its supervisor does, however that dies.

Run as a file, not imported: `python -I -S tether.py SUPERVISOR_PID COMMAND…`. It asks the kernel
for SIGKILL at the death of its parent, which survives `exec`, and becomes the command. Every
command stores what it acknowledges before it does so, and therefore may be killed at any moment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

__all__ = ["become"]

_PR_SET_PDEATHSIG: Final = 1


def become(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, which is killed when the process `parent` is gone.

    Linux only: elsewhere there is no `prctl`, and the command is not started.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())  # whatever its parent's thread blocked
    os.execvp(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
