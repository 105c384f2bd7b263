"""The verifier: a process of the server that reads what was made live, so that no worker has to.

It follows `CURRENT`, reads every file of the generation that it names and compares it with its
checksum, and tells all workers; the pages are in memory then. It has a low priority, and a core
that answers requests is not kept from it. See `twotower.serving.verified` for who believes it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections import deque
from pathlib import Path
from typing import Final

from twotower.errors import CorruptArtifact, TwoTowerError
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.serving.shared_memory import StatusBlock
from twotower.serving.status import Verdict, VerifierStatus

__all__ = ["Verifier"]

_NICE: Final = 19
"""Where the kernel has nothing lower."""
_LOOK_S: Final = 0.05
"""Looking is reading a small file; this process answers nobody."""
_VERDICTS: Final = 8
"""That are remembered."""
_AGAIN_S: Final = 5.0
"""Until bad files are read again."""
_SETTLED_NS: Final = 50_000_000
"""Files that changed less long ago are looked at later: within some milliseconds a kernel gives all
changes the same time, and the second one would not be seen."""


class Verifier:
    """Look again and again, until the server is gone."""

    def __init__(self, data_path: Path, board: StatusBlock) -> None:
        """Nothing is read yet.

        Args:
            data_path: The project's data folder.
            board: Where to tell the workers.
        """
        self._store = ModelStore(data_path)
        self._board = board
        self._verdicts: deque[Verdict] = deque(maxlen=_VERDICTS)
        self._step = 0
        self._again_at_s = 0.0
        """When files that were found bad are read again: once is not for ever."""
        self._settled: int | None = None
        """Activation of which everything is said."""

    def run(self, lifeline: int) -> None:
        """Verify until a signal, or until the server at the other end of `lifeline` is gone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _give_way()
        self._tell()
        while not select.select([lifeline], [], [], _LOOK_S)[0]:
            self.tick()

    def tick(self) -> None:
        """Look once at what is live, and read it if it is not known."""
        try:
            live = self._store.live()
            if live is None or live.sequence == self._settled:
                return
            generation = self._store.open(live.generation, verify=False)
            is_good = self._is_good(generation)
        except (TwoTowerError, OSError):
            return  # the workers see it too, and say so
        self._settled = live.sequence if is_good else None

    def _is_good(self, generation: Generation) -> bool:
        """Return whether the verdict on its files is known and good."""
        found = generation.fingerprint()
        if 0 <= time.time_ns() - found.changed_ns < _SETTLED_NS:
            return False
        key = (generation.digest, found.digest)
        for verdict in self._verdicts:
            is_same = (verdict.manifest, verdict.files) == key
            if is_same and (verdict.problem is None or time.monotonic() < self._again_at_s):
                return verdict.problem is None
        problem = self._problem(generation)
        if generation.fingerprint() != found:
            return False  # it changed while it was read
        if problem is not None:
            self._again_at_s = time.monotonic() + _AGAIN_S
        kept = [one for one in self._verdicts if (one.manifest, one.files) != key]
        self._verdicts = deque([*kept, Verdict(*key, problem)], maxlen=_VERDICTS)
        self._tell()
        return problem is None

    def _problem(self, generation: Generation) -> str | None:
        try:
            generation.verify(self._tell)
        except (CorruptArtifact, OSError) as error:
            return str(error)
        return None

    def _tell(self) -> None:
        """Tell the workers what is known, and that there is progress."""
        self._step += 1
        self._board.write(VerifierStatus(os.getpid(), self._step, tuple(self._verdicts)))


def _give_way() -> None:
    """Compute only where nobody else wants to, and stop the moment somebody does."""
    os.nice(_NICE)
    with contextlib.suppress(OSError, AttributeError):  # forbidden here, or no Linux
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
