"""Notices overload where one thread does everything, and gives way in steps before it refuses.

A search runs inside the event loop, so there is no queue to count: requests wait in their sockets
and, once read, for their turn of the loop. What is measured is that second wait, from the read of a
request's last byte to the beginning of its work. A turn of the loop reads whatever sockets hold
and then works it off, so the wait in a socket is at most one turn, which the measured wait of its
last request shows. docs/decisions/0021-overload-in-one-thread.md has the reasons.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from twotower.serving.messages import RetrieveRequest
from twotower.serving.problems import RefusedRequest
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings

__all__ = ["CHEAPER_SEARCH", "SMALLER_K", "Overload", "OverloadCounts"]

CHEAPER_SEARCH: Final = "overload:cheaper_search"
SMALLER_K: Final = "overload:smaller_k"

_RISES_AT: Final = (0.25, 0.5, 1.0)
"""Shares of `max_wait_s` from which on: the search is cheaper, `k` smaller, requests refused."""
_FALLS_AT: Final = 0.5
"""Share of the bar that a step was taken at, below which it is taken back: hysteresis."""
_QUEUE: Final = 2
"""With fewer ahead of it a request has waited for something that cheaper answers do not mend."""
_MEMORY_S: Final = 0.1
"""The wait is averaged over about as long; a step is looked at for as long before the next."""
_CALM_S: Final = 1.0
"""How long the wait must be short before a step is taken back."""
_EFFORT_SHARE: Final = 0.5
_AGAIN: Final = ((b"retry-after", b"1"),)


class OverloadCounts(Protocol):
    """Who is told what overload did."""

    def request_shed(self, reason: str) -> None:
        """Count a request that was refused without doing its work."""

    def overload_degraded(self, step: str) -> None:
        """Count an answer that was made cheaper."""


class Overload:
    """The load of one worker. All of it belongs to the thread of the event loop."""

    def __init__(self, settings: ServingSettings, counts: OverloadCounts) -> None:
        """Everything is calm."""
        self.step = 0
        """0: calm, 1: the search is cheaper, 2: `k` is smaller too, 3: requests are refused too."""
        self._settings = settings
        self._counts = counts
        self._wait_s = 0.0
        self._noted_s = 0.0
        self._changed_s = 0.0
        self._loud_s = 0.0
        self._cheaper: tuple[Retriever, Retriever] | None = None
        """Of the retriever that was served last, while overload lasts."""

    def request_shed(self, reason: str) -> None:
        """Count a request whose work was not done."""
        self._counts.request_shed(reason)

    def admit(self, state: Mapping[str, Any]) -> None:
        """Let a request begin its work.

        Args:
            state: With `read_s`, when its last byte was read, by `time.perf_counter`, and
                `num_ahead`, how many read requests were unanswered then.

        Raises:
            RefusedRequest: too many requests are unanswered, or this one has waited too long while
                the steps before did not help: 503, at once.
        """
        now_s = time.perf_counter()
        num_ahead = state.get("num_ahead", 0)
        queued_s = now_s - state.get("read_s", now_s) if num_ahead >= _QUEUE else 0.0
        self._note(queued_s, now_s)
        is_late = self.step == len(_RISES_AT) and queued_s > self._settings.max_wait_s
        if is_late or num_ahead >= self._settings.max_in_flight:
            self._counts.request_shed("queue_full")
            raise RefusedRequest(
                503, "more is asked than can be answered in time; come again", headers=_AGAIN
            )

    def _note(self, queued_s: float, now_s: float) -> None:
        """Take a step or take one back, by how long requests have waited of late."""
        weight = min(1.0, (now_s - self._noted_s) / _MEMORY_S)
        self._noted_s = now_s
        self._wait_s += weight * (queued_s - self._wait_s)
        share = self._wait_s / self._settings.max_wait_s
        if self.step == 0 or share >= _FALLS_AT * _RISES_AT[self.step - 1]:
            self._loud_s = now_s
        if self.step < len(_RISES_AT) and share >= _RISES_AT[self.step]:
            if now_s - self._changed_s >= _MEMORY_S:
                self.step, self._changed_s = self.step + 1, now_s
        elif (num_calm := int((now_s - self._loud_s) / _CALM_S)) > 0:
            self.step, self._loud_s = max(0, self.step - num_calm), now_s
            self._cheaper = None

    def lighten(
        self, retriever: Retriever, request: RetrieveRequest
    ) -> tuple[Retriever, RetrieveRequest, list[str]]:
        """Return what to answer with and what to answer, and what was made cheaper."""
        if self.step == 0 or not self._settings.overload_degrades:
            return retriever, request, []
        reasons = []
        if self._cheaper is None or self._cheaper[0] is not retriever:
            self._cheaper = (retriever, retriever.with_less_effort(_EFFORT_SHARE))
        cheaper = self._cheaper[1]
        if cheaper is not retriever:
            reasons.append(CHEAPER_SEARCH)
        if self.step >= 2 and request.k > self._settings.overload_k:
            request = msgspec.structs.replace(request, k=self._settings.overload_k)
            reasons.append(SMALLER_K)
        for reason in reasons:
            self._counts.overload_degraded(reason.partition(":")[2])
        return cheaper, request, reasons
