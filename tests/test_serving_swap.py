"""The processes of a real server while another generation goes live."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_project import (
    USERS,
    RunningServer,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from test_serving_server import is_running
from tiny_checkpoint import tiny_checkpoint
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore

READ_BY_WORKER = "verified_by_worker"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store of three generations, the first of them live."""
    store = ModelStore(tmp_path / "twotower-data")
    names = [publish_marked(store, number) for number in (1, 2, 3)]
    store.activate(names[0], force=True)
    return store


@contextlib.contextmanager
def logging_server(folder: Path, workers: int = 1) -> Iterator[tuple[RunningServer, Path]]:
    """A server, and the file with its log."""
    log = folder / "log"
    with running_server(write_project(folder), workers=workers, log=log) as server:
        yield server, log


def verifier_of(server: RunningServer) -> int:
    """The process number of the verifier: the child that is no worker."""

    def found() -> set[int]:
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(child) for child in children} - server.worker_pids()

    (pid,) = eventually(found)
    return pid


def test_the_verifier_reads_and_all_workers_follow(store: ModelStore, tmp_path: Path) -> None:
    with logging_server(tmp_path, workers=2) as (server, log):
        for name in ("g-000002", "g-000003"):
            server.wait_ready(store.activate(name, force=True).sequence)
        server.wait_ready(store.roll_back().sequence)
        served = {worker["generation"] for worker in server.readiness()["workers"]}
        assert served == {"g-000002"}
        assert READ_BY_WORKER not in log.read_text()
        assert os.sched_getscheduler(verifier_of(server)) == os.SCHED_IDLE
        assert {os.sched_getscheduler(pid) for pid in server.worker_pids()} == {os.SCHED_OTHER}
        assert server.stop() == 0


def test_without_a_verifier_workers_read_the_files_and_the_next_one_is_started(
    store: ModelStore, tmp_path: Path
) -> None:
    with logging_server(tmp_path, workers=2) as (server, log):
        first = verifier_of(server)
        os.kill(first, signal.SIGSTOP)
        server.wait_ready(store.activate("g-000002", force=True).sequence)
        assert log.read_text().count(READ_BY_WORKER) == 2
        os.kill(first, signal.SIGKILL)
        eventually(lambda: "verifier_died" in log.read_text())
        assert verifier_of(server) != first
        server.wait_ready(store.activate("g-000003", force=True).sequence)
        answer = server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]}).json()
        assert answer["generation"] == "g-000003"
        last = verifier_of(server)
        server.signal(signal.SIGKILL)
        eventually(lambda: not is_running(last))


def address_space_bytes(pid: int) -> int:
    """The memory that a process has mapped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize:"))


def test_a_worker_that_cannot_load_goes_on_with_the_old_one_and_the_server_is_not_ready(
    store: ModelStore, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(seed=9, num_items=60_000)
    large = publish(checkpoint, store, index=IndexSettings(engine="exact")).name
    config = write_project(tmp_path, more="retry_s = 0.1")
    with running_server(config, workers=2) as server:
        poor, rich = sorted(server.worker_pids())
        none = resource.RLIM_INFINITY
        bound = address_space_bytes(poor) + (4 << 20)
        resource.prlimit(poor, resource.RLIMIT_AS, (bound, none))
        sequence = store.activate(large, force=True).sequence

        def served() -> dict[int, str]:
            return {worker["pid"]: worker["generation"] for worker in server.readiness()["workers"]}

        def problem() -> str:
            found = {worker["pid"]: worker["problem"] for worker in server.readiness()["workers"]}
            return str(found[poor]) if found[poor] and not found[rich] else ""

        assert "memory" in eventually(problem).lower()
        eventually(lambda: served() == {poor: "g-000001", rich: large})
        reply = server.ask("GET", "/readyz")
        assert reply.status == 503
        assert not reply.json()["checks"]["together"]["ok"]
        answers = [server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]}) for _ in range(20)]
        assert {reply.status for reply in answers} == {200}
        assert {reply.json()["generation"] for reply in answers} <= {"g-000001", large}
        resource.prlimit(poor, resource.RLIMIT_AS, (none, none))
        server.wait_ready(sequence)
        assert served() == {poor: large, rich: large}


def private_bytes(pid: int) -> int:
    """The memory of a process that no other one shares and no file holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def test_a_worker_that_was_killed_while_it_loads_is_replaced_by_one_that_has_loaded(
    store: ModelStore, tmp_path: Path
) -> None:
    with logging_server(tmp_path) as (server, _):
        (worker,) = server.worker_pids()
        verifier = verifier_of(server)
        os.kill(verifier, signal.SIGSTOP)
        sequence = store.activate("g-000002", force=True).sequence
        os.kill(worker, signal.SIGKILL)  # it has no verdict yet
        os.kill(verifier, signal.SIGCONT)
        server.wait_ready(sequence)
        assert server.worker_pids() != {worker}


@pytest.mark.slow
def test_memory_comes_back_after_many_swaps(store: ModelStore, tmp_path: Path) -> None:
    with logging_server(tmp_path) as (server, _):
        (worker,) = server.worker_pids()

        def after(num_swaps: int) -> int:
            for number in range(num_swaps):
                name = f"g-00000{2 + number % 2}"
                server.wait_ready(store.activate(name, force=True).sequence)
            return private_bytes(worker)

        before = after(10)
        found = after(40)
        assert found < 1.05 * before, (before, found)
