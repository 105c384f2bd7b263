"""The server: one process that answers nothing and keeps its workers alive.

It binds the socket, maps the shared memory, makes the application that answers what need not be
fast, and forks the workers, which share the pages of all that. It imports no engine that starts
threads and has none itself, so forking is safe at any time. Its signals are blocked and fetched one
by one, so that none is lost between two looks. A worker that dies is replaced; its replacement
loads first and then takes connections.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from twotower.serving.engines import import_engines, import_index_engine
from twotower.serving.profiles import open_profiles
from twotower.serving.project import ServedProject
from twotower.serving.reach import bind
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import SharedMemory
from twotower.serving.status import VerifierStatus, WorkerStatus

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Server"]

_LOGGER: Final = logging.getLogger("twotower")
_STOPPING: Final = {signal.SIGTERM, signal.SIGINT}
_SIGNALS: Final = {*_STOPPING, signal.SIGCHLD}
_TICK_S: Final = 1.0
_STEADY_S: Final = 10.0
_MAX_PAUSE_S: Final = 5.0
_GRACE_S: Final = 2.0


class _Child(NamedTuple):
    """A worker's process, or the verifier's."""

    pid: int
    started_s: float


class Server:
    """Start, loop over ticks until a signal, stop; once."""

    def __init__(
        self,
        project: ServedProject,
        settings: ServingSettings,
        *,
        requires_key: bool = False,
    ) -> None:
        """Nothing is bound or started yet.

        Args:
            project: What is served.
            settings: How to serve it.
            requires_key: Refuse requests without a key, see `check_reach`.
        """
        self._project = project
        self._requires_key = requires_key
        self._settings = settings
        self._memory = SharedMemory(settings.workers)
        self._children: dict[int, _Child] = {}
        self._verifier_slot = settings.workers
        """Behind the workers'."""
        self._start_at_s = dict.fromkeys(range(settings.workers, -1, -1), 0.0)
        """When the slots without a process get one; the verifier is first."""
        self._pause_s = 0.0
        self._has_started = False
        self._signal: int | None = None

    def start(self) -> str:
        """Bind, start the workers and return the address; they load while they answer already.

        Raises:
            ConfigError: the address cannot be bound.
            MissingExtra: the packages of the server are not installed.
        """
        import_engines(self._settings.trace_share)
        open_profiles(self._settings.profiles)  # refuses a package that is not there
        import_index_engine(self._project.data_path)
        self._behind = _application(self._memory, self._project.data_path)
        self._listener = bind(self._settings.host, self._settings.port)
        self._lifeline, self._held_end = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.collect()
        gc.freeze()  # the workers share these pages as long as nobody writes to them
        self._start_missing()
        self._has_started = True
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def loop(self) -> None:
        """Keep the workers alive until SIGTERM or SIGINT."""
        while self._signal is None:
            self.tick(_TICK_S)

    def tick(self, timeout_s: float) -> None:
        """Wait for something to happen, then bury and replace workers that died."""
        received = signal.sigtimedwait(_SIGNALS, timeout_s)
        if received is not None and received.si_signo in _STOPPING:
            self._signal = received.si_signo
            return
        for slot, child in self._reap():
            self._note_death(slot, child.pid)
            is_steady = time.monotonic() - child.started_s > _STEADY_S
            self._pause_s = 0.0 if is_steady else min(_MAX_PAUSE_S, 2 * self._pause_s + 0.1)
            self._start_at_s[slot] = time.monotonic() + self._pause_s
        self._start_missing()

    def _note_death(self, slot: int, pid: int) -> None:
        """Tell the others at once."""
        if slot == self._verifier_slot:
            _LOGGER.error("verifier_died pid=%d", pid)
            self._memory.verifier.write(VerifierStatus())
            return
        _LOGGER.error("worker_died pid=%d slot=%d", pid, slot)
        self._memory.status(slot).write(WorkerStatus(pid=pid, state="restarting"))

    def stop(self) -> bool:
        """Drain the workers and return whether all of them ended by themselves and well.

        A second signal makes them end at once.
        """
        self._listener.close()
        waiting_s = self._settings.drain_delay_s + self._settings.drain_timeout_s + _GRACE_S
        give_up_at_s = time.monotonic() + waiting_s
        self._forward(self._signal or signal.SIGTERM)
        while self._children and time.monotonic() < give_up_at_s:
            received = signal.sigtimedwait(_SIGNALS, _TICK_S)
            if received is not None and received.si_signo in _STOPPING:
                self._forward(received.si_signo)
            self._reap()
        all_ended = not self._children
        self._forward(signal.SIGKILL)
        os.close(self._held_end)
        return all_ended

    def _forward(self, number: int) -> None:
        for child in self._children.values():
            os.kill(child.pid, number)

    def _reap(self) -> list[tuple[int, _Child]]:
        """Return the workers that ended, and forget them."""
        ended = [
            (slot, child)
            for slot, child in self._children.items()
            if os.waitpid(child.pid, os.WNOHANG)[0] == child.pid
        ]
        for slot, _ in ended:
            del self._children[slot]
        return ended

    def _start_missing(self) -> None:
        now_s = time.monotonic()
        for slot in [slot for slot, at_s in self._start_at_s.items() if at_s <= now_s]:
            del self._start_at_s[slot]
            self._children[slot] = _Child(self._fork(slot), now_s)

    def _fork(self, slot: int) -> int:
        """Start a worker, or the verifier, and return its process number."""
        sys.stdout.flush()
        sys.stderr.flush()
        if slot == self._verifier_slot:
            self._memory.verifier.write(VerifierStatus(pid=0))
        pid = os.fork()
        if pid == 0:
            self._become(slot)
        return pid

    def _become(self, slot: int) -> None:
        """Run a worker, or the verifier, and end this process, whatever happens."""
        code = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C reaches the server alone, which forwards it
            os.close(self._held_end)
            if slot == self._verifier_slot:
                self._verify()
            else:
                self._work(slot)
            code = 0
        except BaseException:
            _LOGGER.exception("process_failed slot=%d", slot)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _verify(self) -> None:
        from twotower.serving.verifier import Verifier

        self._listener.close()
        Verifier(self._project.data_path, self._memory.verifier).run(self._lifeline)

    def _work(self, slot: int) -> None:
        from twotower.serving.worker import Worker

        worker = Worker(
            self._project,
            self._settings,
            self._memory,
            slot,
            self._behind,
            requires_key=self._requires_key,
        )
        worker.run(self._listener, self._lifeline, load_first=self._has_started)


def _application(memory: SharedMemory, data_path: Path) -> FastAPI:
    """Return what answers behind the routes that have to be fast, once for all workers."""
    from twotower.serving.app import make_app
    from twotower.serving.project_metrics import ProjectMetrics

    return make_app(memory, ProjectMetrics(data_path))
