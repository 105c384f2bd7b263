"""What workers and the verifier say of themselves, and what follows for the server's readiness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = [
    "Check",
    "Readiness",
    "ServedByWorker",
    "Startup",
    "Verdict",
    "VerifierStatus",
    "WorkerState",
    "WorkerStatus",
    "readiness",
    "startup",
]

WorkerState = Literal["starting", "serving", "draining", "restarting"]


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, as all others see it."""

    pid: int
    state: WorkerState
    """`restarting`: its process died and the next one does not take connections yet."""
    generation: str | None = None
    sequence: int | None = None
    manifest: str = ""
    created_s: float = 0.0
    activated_s: float = 0.0
    cut_s: float = 0.0
    newest_event_s: float = 0.0
    """The times are seconds since 1970; this one of what generation and delta learned from."""
    delta: int | None = None
    items_number: int | None = None
    user_state_offset: int | None = None
    has_looked: bool = False
    """Whether it has looked at what is live, whatever came of it."""
    problem: str | None = None
    """Why it does not serve what is live; what it serves is whole."""

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.state != "restarting"


class Verdict(msgspec.Struct, frozen=True):
    """What the verifier found in the files of one generation."""

    manifest: str
    """Digest of the generation's manifest."""
    files: str
    """Fingerprint of the files that were read."""
    problem: str | None = None
    """What is wrong with them."""


class VerifierStatus(msgspec.Struct, frozen=True):
    """The verifier, as the workers see it."""

    pid: int | None = None
    """None: there is none now; 0: it starts."""
    step: int = 0
    """Grows with every part that was read."""
    verdicts: tuple[Verdict, ...] = ()
    """The last ones, oldest first: a roll-back need not read what was read."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of readiness."""

    ok: bool
    detail: str


class ServedByWorker(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker serves."""

    pid: int
    state: WorkerState
    generation: str | None
    sequence: int | None
    delta: int | None
    items_number: int | None
    user_state_offset: int | None
    problem: str | None


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server should get requests, and each reason for it."""

    status: Literal["ready", "not ready"]
    checks: dict[str, Check]
    workers: list[ServedByWorker]


class Startup(msgspec.Struct, frozen=True, kw_only=True):
    """Whether every worker has begun: it has looked at what is live, and loaded what there was."""

    status: Literal["started", "starting"]
    workers: int
    """Those that there are to be."""
    started: int


def startup(statuses: Sequence[WorkerStatus | None]) -> Startup:
    """Return whether the server has started; it may have nothing to serve yet."""
    started = sum(status is not None and status.has_looked for status in statuses)
    is_whole = started == len(statuses)
    return Startup(
        status="started" if is_whole else "starting", workers=len(statuses), started=started
    )


def readiness(statuses: Sequence[WorkerStatus | None]) -> Readiness:
    """Return whether every worker that takes connections gives whole, current answers.

    A generation that no worker can load does not make the server unready: all go on with the old
    one, and taking them out of service would turn one bad publish into an outage. A worker that
    fails where another succeeded is behind, and does.
    """
    known = [status for status in statuses if status is not None]
    accepting = [status for status in known if status.is_alive]
    newest = max((status.sequence or 0 for status in known), default=0)
    behind = [s for s in accepting if s.problem and (s.sequence or 0) < newest]
    empty = [s for s in accepting if s.sequence is None]
    draining = [s for s in accepting if s.state == "draining"]
    problems = sorted({status.problem for status in accepting if status.problem})
    started = len(known) == len(statuses) and bool(accepting)
    checks = {
        "started": _check(started, f"{len(known)} of {len(statuses)} workers have started"),
        "loaded": _check(
            started and not empty,
            f"{len(empty)} of {len(accepting)} workers have no generation loaded and warm",
        ),
        "together": _check(not behind, f"{len(behind)} workers could not follow the others"),
        "not_draining": _check(not draining, "the server is shutting down"),
    }
    is_ready = all(check.ok for check in checks.values())
    checks["follows_current"] = _check(not problems, "; ".join(problems))
    return Readiness(
        status="ready" if is_ready else "not ready",
        checks=checks,
        workers=[_served(status) for status in known],
    )


def _check(ok: bool, failure: str) -> Check:
    return Check(ok=ok, detail="" if ok else failure)


def _served(status: WorkerStatus) -> ServedByWorker:
    return ServedByWorker(
        pid=status.pid,
        state=status.state,
        generation=status.generation,
        sequence=status.sequence,
        delta=status.delta,
        items_number=status.items_number,
        user_state_offset=status.user_state_offset,
        problem=status.problem,
    )
