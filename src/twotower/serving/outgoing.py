"""One answer on its way out: its headers, its place in the metrics, its line in the log.

What users sent is never in a log line above DEBUG: not their IDs, not their features, not the text
of an error of ours, which may quote them.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any, Final

from twotower.serving.exchange import RequestIds, Send, problem_reply, send_reply
from twotower.serving.metrics import Metrics
from twotower.serving.problems import CLOSE, Header, RefusedRequest

__all__ = ["Echo", "Outgoing", "log_answer", "log_failure"]

_LOGGER: Final = logging.getLogger("twotower")
_MAX_FRAMES: Final = 5
_TRACE: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def log_failure(event: str, request_id: str, error: Exception) -> None:
    """Log a failure of ours: its kind and place; its text and all frames at DEBUG only."""
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    kind = type(error).__name__
    _LOGGER.error("%s request_id=%s error=%s at=%r", event, request_id, kind, places)
    _LOGGER.debug("%s request_id=%s", event, request_id, exc_info=error)


def log_answer(label: str, status: int, headers: Sequence[Header], seconds: float) -> None:
    """Write the line of the access log: which route, never what was asked; at DEBUG only."""
    if not _LOGGER.isEnabledFor(logging.DEBUG):
        return
    trace = _value(headers, b"traceparent").split("-")
    _LOGGER.debug(
        "request route=%s code=%d request_id=%s trace_id=%s generation=%s duration_ms=%.3f",
        *(label, status, _value(headers, b"x-request-id")),
        *(trace[1] if len(trace) > 1 else None, _value(headers, b"x-generation") or None),
        1000 * seconds,
    )


class Echo:
    """What every answer says back: the request's ID and trace, and whether to come again here."""

    def __init__(self) -> None:
        self.is_draining = False
        """Once set, every answer asks its client to open the next connection elsewhere."""
        self._ids = RequestIds()

    def of(self, headers: Iterable[Header]) -> tuple[str, tuple[Header, ...]]:
        """Return a request's ID, and the headers that its answer has whatever it is."""
        given_id = trace = None
        for name, value in headers:
            if name == b"x-request-id":
                given_id = value
            elif name == b"traceparent":
                trace = value
        request_id = self._ids.of(given_id)
        answered: tuple[Header, ...] = ((b"x-request-id", request_id.encode()),)
        if trace is not None and _TRACE.fullmatch(trace):
            answered = (*answered, (b"traceparent", trace))
        return request_id, (*answered, *CLOSE) if self.is_draining else answered


class Outgoing:
    """Passes an answer on with the headers that every answer has, and counts it once."""

    def __init__(
        self, send: Send, metrics: Metrics, request_id: str, headers: tuple[Header, ...]
    ) -> None:
        self.label = "other"
        """The route as metrics name it."""
        self._send = send
        self._metrics = metrics
        self._request_id = request_id
        self._headers = headers
        self._status = 0
        self._sent: Sequence[Header] = headers
        self._is_finished = False
        self._began_s = time.perf_counter()
        metrics.request_began()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"].extend(self._headers)
            self._sent = message["headers"]
        elif not message.get("more_body"):
            self.finish()  # before the last byte: who has the answer finds it counted
        await self._send(message)

    def finish(self) -> None:
        """Count the request; one that was never answered as 500."""
        if not self._is_finished:
            self._is_finished = True
            seconds = time.perf_counter() - self._began_s
            self._metrics.request_ended(self.label, self._status or 500, seconds)
            log_answer(self.label, self._status or 500, self._sent, seconds)

    async def refuse(self, refused: RefusedRequest) -> None:
        """Send a problem, unless an answer has begun."""
        if self._status == 0:
            await send_reply(self.send, problem_reply(refused, self._request_id))


def _value(headers: Iterable[Header], wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in headers if name == wanted), "")
