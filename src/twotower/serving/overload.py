"""Notices overload where one thread does everything, and gives way in steps before it refuses.

A search runs inside the event loop, and the loop reads whatever its sockets hold before it works
any of it off. So when the head of a request is read, the requests that were read before and are
not answered are the queue, and their number times the time that one takes is the wait. Whoever
would wait too long is refused there and then, past the loop's list and the framework: refusals
that had to wait their turn, or cost what answers cost, would leave no time for answers.
docs/decisions/0021-overload-in-one-thread.md has the reasons.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import msgspec

from twotower.serving.exchange import RequestIds
from twotower.serving.messages import RetrieveRequest
from twotower.serving.problems import Header, problem_body
from twotower.serving.retriever import Retriever
from twotower.serving.route_table import RouteTable
from twotower.serving.settings import ServingSettings

__all__ = ["CHEAPER_SEARCH", "SMALLER_K", "Overload", "OverloadCounts"]

CHEAPER_SEARCH: Final = "overload:cheaper_search"
SMALLER_K: Final = "overload:smaller_k"

_RISES_AT: Final = (0.25, 0.5, 1.0)
"""Shares of `max_wait_s` from which on: the search is cheaper, `k` smaller, requests refused."""
_FALLS_AT: Final = 0.5
"""Share of the bar that a step was taken at, below which it is taken back: hysteresis."""
_SHARE: Final = 1 / 32
"""Of the newest request in the averages of waits and of times of work."""
_REST_S: Final = 0.1
"""A step is looked at for so long before the next."""
_CALM_S: Final = 1.0
"""How long the wait must be short before a step is taken back; a pause as long is calm."""
_EFFORT_SHARE: Final = 0.5


class OverloadCounts(Protocol):
    """Who is told what overload did."""

    def request_shed(self, reason: str) -> None:
        """Count a request that was refused without doing its work."""

    def request_refused(self, route: str, code: int) -> None:
        """Count a request that was answered the moment its head was read."""

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
        self._table = RouteTable()
        self._ids = RequestIds()
        self._num_elsewhere = 0
        self._work_s = 0.0
        self._wait_s = 0.0
        self._noted_s = 0.0
        self._changed_s = 0.0
        self._loud_s = 0.0
        self._cheaper: tuple[Retriever, Retriever] | None = None
        """Of the retriever that was served last, while overload lasts."""

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Inside, a request waits for a body, another process or a thread, not for the loop."""
        self._num_elsewhere += 1
        try:
            yield
        finally:
            self._num_elsewhere -= 1

    def worked(self, seconds: float) -> None:
        """Take note of the time that a request took the loop."""
        self._work_s += _SHARE * (seconds - self._work_s)

    def request_shed(self, reason: str) -> None:
        """Count a request whose work was not done."""
        self._counts.request_shed(reason)

    def refusal(
        self, method: str, path: bytes, headers: Iterable[Header], num_unanswered: int
    ) -> bytes | None:
        """Return what to answer to a request at once, None where it may wait for its turn.

        Args:
            method: Of the request whose head was just read.
            path: As it was sent, with the query.
            headers: Its headers.
            num_unanswered: Requests that were read before and are not answered.
        """
        num_ahead = max(0, num_unanswered - self._num_elsewhere)
        wait_s = num_ahead * self._work_s
        self._note(wait_s, time.perf_counter())
        is_late = self.step == len(_RISES_AT) and wait_s > self._settings.max_wait_s
        if not is_late and num_ahead < self._settings.max_in_flight:
            return None
        raw_path = path.partition(b"?")[0]
        match = self._table.find(method, raw_path.decode("latin-1"), raw_path)
        if match.route is None or match.route.scope != "retrieve":
            return None
        self._counts.request_refused(match.label, 503)
        self._counts.request_shed("queue_full")
        given = next((value for name, value in headers if name == b"x-request-id"), None)
        return _refusal(self._ids.of(given))

    def _note(self, wait_s: float, now_s: float) -> None:
        """Take a step or take one back, by how long requests have to wait of late."""
        is_rested = now_s - self._noted_s > _CALM_S
        self._wait_s += (1.0 if is_rested else _SHARE) * (wait_s - self._wait_s)
        self._noted_s = now_s
        share = self._wait_s / self._settings.max_wait_s
        if self.step == 0 or share >= _FALLS_AT * _RISES_AT[self.step - 1]:
            self._loud_s = now_s
        if self.step < len(_RISES_AT) and share >= _RISES_AT[self.step]:
            if now_s - self._changed_s >= _REST_S:
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


def _refusal(request_id: str) -> bytes:
    """Return the whole answer 503; the connection goes on."""
    detail = "more is asked than can be answered in time; come again"
    body = problem_body(503, detail, request_id)
    return (
        f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\nretry-after: 1\r\nx-request-id: {request_id}\r\n\r\n"
    ).encode() + body
