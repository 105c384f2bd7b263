"""Whether a generation may be loaded: what the verifier says of it, or a look of one's own.

One process of the server reads every file of a generation that was made live and compares it with
its checksum, so that no worker does. A worker believes it only of the very files that it read: of
this manifest, with the same inode, size and times as now. A verifier that died, or that does not
get on, is waited for no longer: the worker reads the files itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from twotower.errors import CorruptArtifact
from twotower.publishing.generation import Generation
from twotower.serving.shared_memory import StatusBlock
from twotower.serving.status import VerifierStatus

__all__ = ["Verified", "verify_here"]

_LOGGER: Final = logging.getLogger("twotower")
_PATIENCE_S: Final = 1.0
"""How long a verifier may show no progress; it tells of every quarter of a megabyte."""
_SLOWEST_BYTES_PER_S: Final = 20e6
"""Of a verifier that is waited for; where others leave it no time, it is slower than that."""


def verify_here(generation: Generation) -> bool:
    """Read every file; raises what `Generation.verify` raises."""
    generation.verify()
    return True


class Verified:
    """What one worker makes of what the verifier says. For one thread."""

    def __init__(self, board: StatusBlock, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask nobody yet.

        Args:
            board: Where the verifier writes.
            clock: Seconds that only grow.
        """
        self._board = board
        self._clock = clock
        self._manifest = ""
        """Of the generation that is waited for."""
        self._progress: tuple[int | None, int] = (None, 0)
        self._began_s = self._moved_s = 0.0
        """When waiting for it began, and when the verifier last got on."""

    def __call__(self, generation: Generation) -> bool:
        """Return True if its files may be loaded, False if one should ask again soon.

        Raises:
            CorruptArtifact: what `Generation.verify` raises, here or in the verifier.
        """
        status = self._board.read(VerifierStatus) or VerifierStatus()
        verdicts = [one for one in status.verdicts if one.manifest == generation.digest]
        files = generation.fingerprint().digest if verdicts else ""
        for verdict in verdicts:
            if verdict.files == files:
                if verdict.problem is not None:
                    raise CorruptArtifact(verdict.problem)
                self._manifest = ""
                return True
        if self._is_worth_waiting(status, generation):
            return False
        self._manifest = ""
        _LOGGER.warning("verified_by_worker generation=%s", generation.name)
        return verify_here(generation)

    def _is_worth_waiting(self, status: VerifierStatus, generation: Generation) -> bool:
        now_s, progress = self._clock(), (status.pid, status.step)
        if generation.digest != self._manifest:
            self._manifest, self._began_s = generation.digest, now_s
            self._progress, self._moved_s = progress, now_s
        if progress != self._progress:
            self._progress, self._moved_s = progress, now_s
        num_bytes = sum(entry.bytes for entry in generation.manifest.files.values())
        longest_s = 2 * _PATIENCE_S + num_bytes / _SLOWEST_BYTES_PER_S
        return (
            status.pid is not None
            and now_s - self._moved_s < _PATIENCE_S
            and now_s - self._began_s < longest_s
        )
