"""Runs of increments over the live generation: once, or following whatever is live.

A following run does not end because a loss explodes: whoever started it would start it again, to
the same end. It says so once, publishes nothing more over that generation, and goes on with the
next one.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

import msgspec

from twotower.config import Project
from twotower.data.example_log import ExampleLog
from twotower.errors import GateRefused, NotReady
from twotower.increments import Clock, Increments
from twotower.progress import SILENT, Progress
from twotower.publishing.activation import Activation
from twotower.publishing.delta import Delta
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore

__all__ = ["Unpublished", "catch_up", "publish_learned", "run_increment", "unpublished"]

_LOGGER: Final = logging.getLogger("twotower")
_POLL_S: Final = 1.0


def run_increment(
    project: Project,
    *,
    follow: bool = False,
    stop: threading.Event | None = None,
    progress: Progress = SILENT,
    clock: Clock = time.time,
) -> list[Delta]:
    """Learn the log's examples over the live generation and publish what changed.

    Args:
        project: whose log and whose live generation.
        follow: go on with what comes, also on the next live generation, and publish every
            `increment.publish_every_s`, until `stop` is set; else end at the end of the log.
        stop: set by somebody else, it ends a following run, whose state is stored and published.
        progress: told of every portion.
        clock: seconds since 1970.

    Returns:
        The deltas written; of a following run the last one only.

    Raises:
        NotReady: nothing is live or joined, or another process learns over the live generation; a
            following run waits instead.
        GateRefused: the loss is not finite, or explodes; the last delta stays live. A following run
            waits for the next generation instead.
    """
    if follow:
        follower = _Follower(project, stop or threading.Event(), progress, clock)
        follower.run()
        return follower.last
    with Increments.open(project, ModelStore(project.data_path).open(), clock=clock) as running:
        running.learn_all(progress)
        delta = running.publish()
    return [delta] if delta else []


class _Follower:
    """Learns and publishes over whatever is live, until it is told to stop."""

    def __init__(
        self, project: Project, stop: threading.Event, progress: Progress, clock: Clock
    ) -> None:
        self.last: list[Delta] = []
        """The newest delta that was written."""
        self._project, self._stop, self._progress, self._clock = project, stop, progress, clock
        self._store = ModelStore(project.data_path)
        self._said = ""
        """What is waited for, as the log has it."""

    def run(self) -> None:
        """Go from one live generation to the next."""
        while not self._stop.is_set():
            self._follow_live()

    def _follow_live(self) -> None:
        try:
            self._follow(*self._store.open_live())
        except NotReady as error:
            self._say(str(error))
            self._stop.wait(_POLL_S)

    def _follow(self, generation: Generation, activation: Activation) -> None:
        """Learn and publish until the generation is live no more, or `stop` is set.

        Raises:
            NotReady: nothing was joined yet, or another process learns over the generation.
        """
        try:
            self._learn(generation, activation)
        except GateRefused as error:
            _LOGGER.error("increments_stopped base=%r reason=%r", generation.name, str(error))
            while not self._stop.is_set() and self._store.live() == activation:
                self._stop.wait(_POLL_S)

    def _learn(self, generation: Generation, activation: Activation) -> None:
        with Increments.open(self._project, generation, clock=self._clock) as running:
            self._said = ""
            self._progress.begin(f"increments of {generation.name}")
            while not self._stop.is_set() and self._store.live() == activation:
                self._note(running.tick(self._progress))
                self._stop.wait(_POLL_S)
            if self._stop.is_set():
                running.learn_all(self._progress)
                self._note(running.publish())

    def _note(self, delta: Delta | None) -> None:
        if delta is not None:
            self.last = [delta]

    def _say(self, reason: str) -> None:
        """Log what is waited for, once until it is another thing."""
        if reason != self._said:
            _LOGGER.info("waiting reason=%r", reason)
            self._said = reason


def publish_learned(project: Project, *, clock: Clock = time.time) -> Delta | None:
    """Publish what is learned over the live generation and not published; learn nothing more.

    Raises:
        NotReady: nothing is live or joined, or another process learns over the live generation.
    """
    with Increments.open(project, ModelStore(project.data_path).open(), clock=clock) as running:
        return running.publish()


class Unpublished(msgspec.Struct, frozen=True, kw_only=True):
    """What the next delta would hold."""

    base: str
    first_offset: int
    through_offset: int
    users: int
    items: int


def unpublished(project: Project) -> Unpublished:
    """Return what `publish_learned` would publish; nothing is.

    Raises:
        NotReady: as `publish_learned`.
    """
    with Increments.open(project, ModelStore(project.data_path).open()) as running:
        first_offset = running.state.published_offset
        rows = running.state.take_delta_rows()  # from memory: they stay unpublished on the disk
        return Unpublished(
            base=running.generation.name,
            first_offset=first_offset,
            through_offset=running.state.offset,
            users=len(rows.user_ids),
            items=len(rows.item_ids),
        )


def catch_up(project: Project, generation: Generation, *, progress: Progress = SILENT) -> None:
    """Bring the increments of a generation that is not live yet to the end of the example log.

    Its delta lies beside it before its activation, so that both go live in one swap and freshness
    falls back by less than one publish interval. Where nothing was joined nothing is done.

    Raises:
        GateRefused: the loss is not finite, or explodes.
    """
    try:
        ExampleLog.open(project.data_path)
    except NotReady:
        return
    with Increments.open(project, generation) as running:
        running.learn_all(progress)
        running.publish()
