"""When a server is ready, and when one bad publish must not make it unready."""

from __future__ import annotations

import pytest

from twotower.serving.status import (
    Readiness,
    Startup,
    WorkerState,
    WorkerStatus,
    readiness,
    startup,
)


def worker(
    sequence: int | None = 3, state: WorkerState = "serving", problem: str | None = None
) -> WorkerStatus:
    generation = None if sequence is None else f"g-00000{sequence}"
    return WorkerStatus(
        pid=1, state=state, generation=generation, sequence=sequence, problem=problem
    )


def failing(found: Readiness) -> list[str]:
    return [name for name, check in found.checks.items() if not check.ok]


@pytest.mark.parametrize(
    ("statuses", "status", "checks"),
    [
        ([worker(), worker()], "ready", []),
        ([worker(), worker(2)], "ready", []),  # on its way
        ([worker(), None], "not ready", ["started", "loaded"]),
        ([None], "not ready", ["started", "loaded"]),
        ([worker(None, "starting"), worker()], "not ready", ["loaded"]),
        ([worker(None, "starting", "damaged")], "not ready", ["loaded", "follows_current"]),
        ([worker(state="draining"), worker()], "not ready", ["not_draining"]),
        # nobody can load it: all go on with the old one
        ([worker(problem="damaged"), worker(problem="damaged")], "ready", ["follows_current"]),
        # the other one could: this one is behind
        ([worker(2, problem="no memory"), worker(3)], "not ready", ["together", "follows_current"]),
        # a replacement takes no connections before it is loaded
        ([worker(None, "restarting"), worker()], "ready", []),
        ([worker(None, "restarting")], "not ready", ["started", "loaded"]),
    ],
)
def test_readiness(statuses: list[WorkerStatus | None], status: str, checks: list[str]) -> None:
    found = readiness(statuses)
    assert (found.status, failing(found)) == (status, checks)
    assert all(check.ok or check.detail for check in found.checks.values())
    assert len(found.workers) == len([worker for worker in statuses if worker])


def test_a_server_has_started_once_every_worker_has_looked() -> None:
    looked = WorkerStatus(pid=1, state="starting", has_looked=True)
    begun = WorkerStatus(pid=2, state="starting")
    assert startup([looked, None]).status == "starting"
    assert startup([looked, begun]) == Startup(status="starting", workers=2, started=1)
    assert startup([looked, looked]) == Startup(status="started", workers=2, started=2)
