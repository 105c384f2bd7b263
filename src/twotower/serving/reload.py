"""Follows what is live: load the next generation, warm it, check it, swap, retire the old one.

One thread a worker looks at `CURRENT`, loads aside and replaces one reference. A request reads
that reference once, so its answer comes from one generation; the old one is freed with the last
request that uses it. A generation that is damaged or cannot be loaded leaves the old one serving.
The sequence of activations only grows, so a connection never sees an older one again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from twotower.errors import ConfigError, CorruptArtifact, DataError, TwoTowerError
from twotower.publishing.activation import Activation
from twotower.publishing.manifest import Manifest
from twotower.publishing.store import ModelStore
from twotower.serving.messages import MAX_K, RetrieveRequest
from twotower.serving.metrics import Metrics
from twotower.serving.retriever import Found, Retriever
from twotower.serving.settings import ServingSettings

__all__ = ["Follower", "Served", "find"]

_LOGGER: Final = logging.getLogger("twotower")
_NUM_PROBES: Final = 20
_PROBE_K: Final = 100
_BREATH_S: Final = 0.001
"""Between two warming requests: the thread that answers gets the interpreter back."""
_KIND: Final = "full"


class Served(NamedTuple):
    """One generation in service, and the activation that made it live."""

    retriever: Retriever
    manifest: Manifest
    activation: Activation


def find(retriever: Retriever, request: RetrieveRequest) -> Found:
    """Return what a request gets; raises what `Retriever.find` raises."""
    return retriever.find(
        request.user_id,
        request.k,
        features=request.features,
        recent=request.recent,
        exclude=request.exclude,
        include_seen=request.include_seen,
    )


class Follower:
    """Keeps `served` at what is live. `tick` belongs to one thread; anybody may read `served`."""

    def __init__(
        self,
        data_path: Path,
        settings: ServingSettings,
        metrics: Metrics,
        on_change: Callable[[Follower], None] = lambda follower: None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            data_path: The project's data folder.
            settings: How often to look, and what to warm with.
            metrics: Counts what was taken over and what was refused.
            on_change: Called after every change of `served` or `problem`.
        """
        self.served: Served | None = None
        self.problem: str | None = None
        """Why `served` is not what is live."""
        self.recent_requests: deque[RetrieveRequest] = deque(maxlen=settings.warm_requests)
        """Filled by whoever answers; the next generation is warmed with them."""
        self.has_looked = threading.Event()
        """Set after the first `tick`, whatever came of it."""
        self._store = ModelStore(data_path)
        self._settings = settings
        self._metrics = metrics
        self._on_change = on_change
        self._retry_at_s = 0.0
        self._refused: tuple[str, int] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to follow, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the load that may be running; `served` stays."""
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.tick()
            self._stopping.wait(self._settings.poll_s)

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
        self.has_looked.set()

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
            if live.sequence > served.activation.sequence:
                self._swap(served._replace(activation=live))
            elif self.problem is not None:
                self._settle()
            return
        self._swap(self._load())

    def _load(self) -> Served:
        """Return the live generation, verified, warm and checked."""
        with self._timed("load"):
            generation, activation = self._store.open_live()
            retriever = Retriever(generation, activation, threads=self._settings.threads)
        with self._timed("warm"):
            self._warm(retriever)
        return Served(retriever, generation.manifest, activation)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._metrics.publish_phase(_KIND, phase, time.perf_counter() - began)

    def _warm(self, retriever: Retriever) -> None:
        """Answer known users, an unknown one, and recent requests; refuse what is not whole."""
        for request in _probes(retriever):
            _check_answer(retriever, request, find(retriever, request))
            time.sleep(_BREATH_S)
        for request in list(self.recent_requests):
            # a feature of the old model may be none of the new one's
            with contextlib.suppress(ConfigError, DataError):
                find(retriever, request)
            time.sleep(_BREATH_S)

    def _swap(self, served: Served) -> None:
        """Serve it from now on; the old one goes with the last request that uses it."""
        if self.served and served.activation.sequence <= self.served.activation.sequence:
            return  # a roll-back came while this one was loaded; the next tick follows it
        self.served = served
        rolled_back = served.activation.action == "roll_back"
        self._metrics.publish_ended(_KIND, "rolled_back" if rolled_back else "ok")
        _LOGGER.info(
            "serving generation=%s sequence=%d",
            *(served.activation.generation, served.activation.sequence),
        )
        self._settle()

    def _settle(self) -> None:
        self.problem, self._refused = None, None
        self._on_change(self)

    def _refuse(self, activation: Activation | None, error: Exception) -> None:
        """Keep what is served; count and report the refusal once, not at every look."""
        problem = _sentence(error)
        self._retry_at_s = time.monotonic() + self._settings.retry_s
        if activation is not None:
            self._refused = (activation.manifest, activation.sequence)
        if problem == self.problem:
            return
        self.problem = problem
        result = "corrupt" if isinstance(error, CorruptArtifact) else "rejected"
        self._metrics.publish_ended(_KIND, result)
        unexpected = not isinstance(error, TwoTowerError)
        _LOGGER.error("not_followed problem=%r", problem, exc_info=error if unexpected else None)
        self._on_change(self)


def _sentence(error: Exception) -> str:
    named = str(error) if isinstance(error, TwoTowerError) else f"{type(error).__name__}: {error}"
    return named[:1000]


def _probes(retriever: Retriever) -> Iterator[RetrieveRequest]:
    """Yield requests of users spread over all known ones, and of one who is not known."""
    users = retriever.encoder.users
    num_known = len(users)
    places = np.unique(np.linspace(0, max(num_known - 1, 0), _NUM_PROBES).astype(np.int64))
    known = users.decode(places) if num_known else []
    stranger = -(2**63) if users.kind == "int" else "\x01nobody"
    for user in (*known, stranger):
        yield RetrieveRequest(user_id=user, k=min(_PROBE_K, MAX_K), include_seen=True)


def _check_answer(retriever: Retriever, request: RetrieveRequest, found: Found) -> None:
    """Refuse an answer that is short or not finite: nobody should be the first to see it."""
    expected = min(request.k, len(retriever.index))
    is_whole = len(found.positions) == expected and np.isfinite(found.scores).all()
    if not is_whole:
        raise CorruptArtifact(
            f"generation '{retriever.generation}' gave {len(found.positions)} items with scores "
            f"{found.scores[:3].tolist()} … where {expected} finite ones were expected; "
            "it was not served"
        )
