"""Follows what is live: load the next generation, warm it, check it, swap, retire the old one.

One thread a worker looks at `CURRENT`, waits until the generation's files are verified, opens it
aside, has the event loop warm it between two requests, and replaces one reference. A request reads
that reference once, so its answer comes from one generation; the old one is freed with the last
request that uses it. A generation that is damaged or cannot be loaded leaves the old one serving.
The sequence of activations only grows, so a connection never sees an older one again.

Another thread follows what the day brings over the generation, also while the next one loads. A
generation goes live together with everything that exists for it: deltas and users' actions.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from twotower.durable import at_no_chunk
from twotower.errors import CorruptArtifact, TwoTowerError
from twotower.publishing.activation import Activation
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.serving.day import DayFollower, LogReader, named_problem
from twotower.serving.messages import RetrieveRequest
from twotower.serving.metrics import Metrics
from twotower.serving.recall_watch import RecallWatch
from twotower.serving.rest import Rest
from twotower.serving.retriever import Retriever
from twotower.serving.served import Served, find
from twotower.serving.settings import ServingSettings
from twotower.serving.turns import Turns
from twotower.serving.verified import verify_here
from twotower.serving.warming import warm

__all__ = ["Follower"]

_LOGGER: Final = logging.getLogger("twotower")
_SOON_S: Final = 0.02
"""Until the next look while a generation's files are being verified."""
_REST_FACTOR: Final = 4.0
"""Between two files of the next generation."""
_KIND: Final = "full"


class Follower:
    """Keeps `served` at what is live. `tick` and `tick_day` belong to one thread each; anybody
    may read `served`."""

    def __init__(
        self,
        data_path: Path,
        settings: ServingSettings,
        metrics: Metrics,
        on_change: Callable[[Follower], None] = lambda follower: None,
        positive_outcomes: Sequence[str] = ("click",),
        *,
        verified: Callable[[Generation], bool] = verify_here,
        turns: Turns | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            data_path: The project's data folder.
            settings: How often to look, and what to warm with.
            metrics: Counts what was taken over and what was refused.
            on_change: Called after every change of `served` or `problem`.
            positive_outcomes: Outcomes of the event log that count as clicks.
            verified: Whether a generation's files may be loaded, see `Verified`; False to be asked
                again soon.
            turns: Of the thread that answers; None to warm in the one that follows.
        """
        self.served: Served | None = None
        self.recent_requests: deque[RetrieveRequest] = deque(maxlen=settings.warm_requests)
        """Filled by whoever answers; the next generation is warmed with them."""
        self.has_looked = threading.Event()
        """Set after the first `tick`, whatever came of it."""
        self._problem: str | None = None
        self._data_path = data_path
        self._store = ModelStore(data_path)
        self._recall = RecallWatch(settings.recall_sample_every_s, metrics)
        self._reader = LogReader(data_path, positive_outcomes)
        self._swapping = threading.Lock()
        self._settings = settings
        self._metrics = metrics
        self._on_change = on_change
        self._verified = verified
        self._turns = turns or Turns(lambda: 0)
        self._awaited: tuple[str, float] | None = None
        """The manifest whose files are being verified, and since when."""
        self._retry_at_s = 0.0
        self._refused: tuple[str, int] | None = None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, args=(look,), name=name, daemon=True)
            for name, look in (("follower", self.tick), ("day", self.tick_day))
        ]

    @property
    def problem(self) -> str | None:
        """Why `served` is not all that is there."""
        served = self.served
        day = served.day.problems.copy().values() if served else ()
        return "; ".join(filter(None, [self._problem, *day])) or None

    @property
    def is_awaiting(self) -> bool:
        """Whether the next generation's files are being verified."""
        return self._awaited is not None

    def start(self) -> None:
        """Begin to follow, in two threads."""
        for thread in self._threads:
            thread.start()

    def look_first(self) -> None:
        """Follow what is live now, however long that takes; before `start`."""
        while not self.has_looked.is_set():
            self.tick()
            time.sleep(_SOON_S if self.is_awaiting else 0)

    def stop(self) -> None:
        """End the threads, after the load that may be running; `served` stays."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._reader.close()

    def _loop(self, look: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            look()
            is_awaited = look == self.tick and self.is_awaiting
            self._stopping.wait(_SOON_S if is_awaited else self._settings.poll_s)

    def tick_day(self) -> None:
        """Look once at what the day brought over the generation that is served."""
        served = self.served
        if served is None:
            return
        problem = self.problem
        retriever = served.day.advance(served.retriever)
        self._recall.look(retriever, list(self.recent_requests))
        self._metrics.searches_lost(retriever.generation, retriever.index.lost_searches)
        with self._swapping:
            if self.served is not None and self.served.day is served.day:  # none was swapped in
                self.served = self.served._replace(retriever=retriever)
        if retriever is not served.retriever or problem != self.problem:
            self._on_change(self)

    def tick(self) -> None:
        """Look once at what is live and follow it."""
        activation: Activation | None = None
        try:
            activation = self._store.live()
            if activation is not None and not self._is_left_alone(activation):
                self._follow(activation)
            elif activation is None and self.served is not None:
                raise CorruptArtifact("nothing is live any more; the last one is served still")
        except Exception as error:
            self._refuse(activation, error)
        if not self.has_looked.is_set() and not self.is_awaiting:
            self._tell()  # there was nothing to look at

    def _is_left_alone(self, activation: Activation) -> bool:
        """Whether this activation was refused just now: reading it again costs a whole pass."""
        key = (activation.manifest, activation.sequence)
        return key == self._refused and time.monotonic() < self._retry_at_s

    def _follow(self, live: Activation) -> None:
        served = self.served
        if served is not None and live.sequence < served.activation.sequence:
            raise CorruptArtifact(
                f"sequence {live.sequence} of '{live.generation}' is below the one that is served, "
                f"{served.activation.sequence}; a newer activation will be followed"
            )
        if served is not None and live.manifest == served.activation.manifest:
            self._awaited = None  # a roll-back came while the next one was verified
            if live.sequence > served.activation.sequence:
                self._reactivate(live)
            elif self._problem is not None:
                self._settle()
            return
        generation, activation = self._store.open_live(verify=False)
        if self._may_load(generation):
            self._swap(self._load(generation, activation))

    def _may_load(self, generation: Generation) -> bool:
        """Return whether its files were verified; if not yet, the next look comes soon."""
        awaited, self._awaited = self._awaited, None
        if awaited is None or awaited[0] != generation.digest:
            awaited = (generation.digest, time.perf_counter())
        if not self._verified(generation):
            self._awaited = awaited
            return False
        self._metrics.publish_phase(_KIND, "verify", time.perf_counter() - awaited[1])
        return True

    def _load(self, generation: Generation, activation: Activation) -> Served:
        """Return a generation whose files were verified, warm and checked."""
        with self._timed("load"):
            if self.served is not None:  # requests are answered meanwhile
                generation.read_ahead()  # a roll-back's pages may have left the memory
                generation.at_file = Rest(_REST_FACTOR)
            retriever = Retriever(generation, activation, threads=self._settings.threads)
            generation.at_file = at_no_chunk
        day = DayFollower(self._data_path, self._settings, self._metrics, self._reader)
        retriever = day.catch_up(retriever)
        with self._timed("warm"):
            self._turns.take(warm(retriever, list(self.recent_requests), find))
        return Served(retriever, generation.manifest, activation, day)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._metrics.publish_phase(_KIND, phase, time.perf_counter() - began)

    def _swap(self, served: Served) -> None:
        """Serve it from now on; the old one goes with the last request that uses it."""
        with self._swapping:
            if self.served and served.activation.sequence <= self.served.activation.sequence:
                return  # a roll-back came while this one was loaded; the next tick follows it
            newest = served.day.advance(served.retriever)  # what came while it was warmed
            self.served = served._replace(retriever=newest)
        self._took_over(served)

    def _reactivate(self, live: Activation) -> None:
        """Go on with the generation that is served, under another activation."""
        with self._swapping:
            assert self.served is not None
            retriever = self.served.day.begin_again(self.served.retriever)
            self.served = served = self.served._replace(activation=live, retriever=retriever)
        self._took_over(served)

    def _took_over(self, served: Served) -> None:
        rolled_back = served.activation.action == "roll_back"
        self._metrics.publish_ended(_KIND, "rolled_back" if rolled_back else "ok")
        _LOGGER.info(
            "serving generation=%s sequence=%d",
            *(served.activation.generation, served.activation.sequence),
        )
        self._settle()

    def _settle(self) -> None:
        self._problem, self._refused = None, None
        self._tell()

    def _tell(self) -> None:
        self.has_looked.set()
        self._on_change(self)

    def _refuse(self, activation: Activation | None, error: Exception) -> None:
        """Keep what is served; count and report the refusal once, not at every look."""
        problem = named_problem(error)
        self._retry_at_s = time.monotonic() + self._settings.retry_s
        if activation is not None:
            self._refused = (activation.manifest, activation.sequence)
        if problem == self._problem:
            return
        self._problem = problem
        result = "corrupt" if isinstance(error, CorruptArtifact) else "rejected"
        self._metrics.publish_ended(_KIND, result)
        unexpected = not isinstance(error, TwoTowerError)
        _LOGGER.error("not_followed problem=%r", problem, exc_info=error if unexpected else None)
        self._tell()
