"""One worker: an event loop that answers, and a thread that follows what is live.

It is forked by the server with its socket open. SIGTERM drains: `/readyz` fails at once, requests
are taken for `drain_delay_s` more, the running ones finish, the exit code is 0. SIGINT drains
without the delay; a second signal ends at once. A worker whose server died drains too.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Final

from twotower.serving.app import FrontDoor
from twotower.serving.direct import DirectRoute
from twotower.serving.guard import Guard
from twotower.serving.handlers import make_handlers
from twotower.serving.http_server import HttpServer
from twotower.serving.metrics import Metrics
from twotower.serving.outgoing import Echo
from twotower.serving.overload import Overload
from twotower.serving.profiles import open_profiles
from twotower.serving.project import ServedProject
from twotower.serving.rates import RateLimit
from twotower.serving.reload import Follower
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import CounterBlock, SharedMemory
from twotower.serving.status import WorkerState, WorkerStatus
from twotower.serving.tracing import make_traces
from twotower.serving.turns import Turns
from twotower.serving.verified import Verified

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Worker"]

_LOGGER: Final = logging.getLogger("twotower")
_SWITCH_INTERVAL_S: Final = 0.0001
"""How long the loading thread may keep the interpreter; Python's 5 ms show in the tail."""


class Worker:
    """Start, run until told to stop, stop."""

    def __init__(
        self,
        project: ServedProject,
        settings: ServingSettings,
        memory: SharedMemory,
        slot: int,
        behind: FastAPI,
        *,
        requires_key: bool,
    ) -> None:
        """Make everything that answers; nothing is loaded and no thread runs yet.

        Args:
            project: What is served.
            settings: How to serve.
            memory: Shared by all workers of the server.
            slot: Which of them this is.
            behind: Answers what need not be fast; of all workers the same.
            requires_key: Refuse requests without a key, see `check_reach`.
        """
        self._settings = settings
        self._status = memory.status(slot)
        self._state: WorkerState = "starting"
        metrics = Metrics(CounterBlock(memory.counters(slot)))
        overload = Overload(settings, metrics)
        rates = RateLimit(settings.key_rate_per_s, settings.key_rate_burst, metrics)
        self._guard = Guard(project.data_path, requires_key=requires_key, rates=rates)
        self._turns = Turns(lambda: self._server.num_waiting())
        self._follower = Follower(
            project.data_path,
            settings,
            metrics,
            self._report,
            project.positive_outcomes,
            verified=Verified(memory.verifier),
            turns=self._turns,
        )
        self._traces = make_traces(settings.trace_share)
        self._echo = Echo()
        self._profiles = open_profiles(settings.profiles, metrics.profile_lost)
        handlers = make_handlers(
            *(project, self._follower, settings, metrics, memory, overload),
            *(self._profiles, self._traces),
        )
        door = FrontDoor(handlers, behind, metrics, self._guard, overload, self._echo)
        direct = DirectRoute(handlers["retrieve"], metrics, self._guard, overload, self._echo)
        has_to_wait = not self._profiles.is_at_hand  # past the application, answers come at once
        self._server = HttpServer(door, settings, overload, None if has_to_wait else direct)
        self._report(self._follower)

    def run(self, listener: socket.socket, lifeline: int, *, load_first: bool) -> None:
        """Serve until a signal, or until the server at the other end of `lifeline` is gone.

        Args:
            listener: Bound; shared with the other workers.
            lifeline: A pipe that nobody writes: it ends when the server does.
            load_first: Take no connection before a generation is loaded, because other workers
                can: this one replaces one that died.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        if load_first:
            self._follower.look_first()
        gc.collect()
        gc.freeze()  # what lives as long as the process is never looked at again
        loop = self._server.new_loop()
        try:
            loop.run_until_complete(self._serve(listener, lifeline))
        finally:
            loop.close()

    async def _serve(self, listener: socket.socket, lifeline: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drain, self._settings.drain_delay_s)
        loop.add_signal_handler(signal.SIGINT, self.drain, 0.0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        loop.add_reader(lifeline, self._orphaned, lifeline)
        self._guard.follow(loop, self._settings.poll_s)
        self._turns.begin(loop)
        self._follower.start()
        await self._server.serve(sockets=[listener])
        await self._profiles.close()
        if self._traces is not None:
            self._traces.close()
        await asyncio.to_thread(self._follower.stop)  # which may wait for a turn of this loop

    def _orphaned(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        _LOGGER.error("server_died pid=%d", os.getpid())
        self.drain(0.0)

    def drain(self, delay_s: float) -> None:
        """Stop after `delay_s`, and at once when asked again."""
        if self._echo.is_draining:
            self._server.should_exit = self._server.force_exit = True
            return
        self._state = "draining"
        self._echo.is_draining = True
        self._report(self._follower)
        asyncio.get_running_loop().call_later(delay_s, self._server.stop)

    def _report(self, follower: Follower) -> None:
        """Tell all workers what this one serves."""
        served = follower.served
        if served is not None and self._state == "starting":
            self._state = "serving"
        status = WorkerStatus(
            pid=os.getpid(),
            state=self._state,
            has_looked=follower.has_looked.is_set(),
            problem=follower.problem,
        )
        if served is None:
            self._status.write(status)
            return
        self._status.write(
            WorkerStatus(
                pid=status.pid,
                state=status.state,
                has_looked=status.has_looked,
                problem=status.problem,
                generation=served.activation.generation,
                sequence=served.activation.sequence,
                manifest=served.activation.manifest,
                created_s=_seconds(served.manifest.created_at),
                activated_s=_seconds(served.activation.activated_at),
                cut_s=served.manifest.window.cut_ms / 1000,
                newest_event_s=served.retriever.overlay.newest_event_time_ms / 1000,
                delta=served.retriever.delta,
                items_number=served.retriever.items_number,
                user_state_offset=served.retriever.user_state_offset,
            )
        )


def _seconds(text: str) -> float:
    """Return the seconds since 1970 of an ISO 8601 time in UTC."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
