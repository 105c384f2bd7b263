"""`POST /v1/retrieve` past ASGI: a request that was read whole is answered by one call.

A task, a queue for the body and two messages would cost more than the user tower. What a request
means is decided by the functions that the application uses as well: its key, its head, its
deadline, its handler. A request whose body comes later, or is one of several in a packet, goes to
the application.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from twotower.serving.exchange import (
    Call,
    Reply,
    answer_whole,
    check_body,
    check_head,
    problem_reply,
    reply_headers,
)
from twotower.serving.guard import Guard
from twotower.serving.handlers import Mounted
from twotower.serving.metrics import Metrics
from twotower.serving.outgoing import Echo, log_answer, log_failure
from twotower.serving.overload import Overload
from twotower.serving.problems import Header, RefusedRequest

__all__ = ["DirectRoute"]

_PATH = "/v1/retrieve"
_URL = _PATH.encode()


class DirectRoute:
    """Answers one route. All of it belongs to the thread of the event loop."""

    def __init__(
        self, mounted: Mounted, metrics: Metrics, guard: Guard, overload: Overload, echo: Echo
    ) -> None:
        self._handler, self._limits = mounted
        self._metrics = metrics
        self._guard = guard
        self._overload = overload
        self._echo = echo

    def takes(self, method: bytes, url: bytes) -> bool:
        """Return whether a request is of the route."""
        return url == _URL and method == b"POST"

    def answer(
        self, headers: Sequence[Header], body: bytes, read_s: float, *, is_gone: bool
    ) -> tuple[int, list[Header], bytes]:
        """Return status, headers and body of the answer, which is counted.

        Args:
            headers: Of the request.
            body: All of it.
            read_s: When it was read, by `time.perf_counter`.
            is_gone: Whether nobody waits for the answer any more.
        """
        began_s = time.perf_counter()
        self._metrics.request_began()
        request_id, echoed = self._echo.of(headers)
        try:
            reply = self._reply(headers, body, read_s, request_id, is_gone)
        except RefusedRequest as refused:
            reply = problem_reply(refused, request_id)
        except Exception as error:
            log_failure("request_failed", request_id, error)
            reply = problem_reply(RefusedRequest(500, "see the server's log"), request_id)
        answered = [*reply_headers(reply), *echoed]
        seconds = time.perf_counter() - began_s
        self._metrics.request_ended(_PATH, reply.status, seconds)
        log_answer(_PATH, reply.status, answered, seconds)
        return reply.status, answered, reply.body

    def _reply(
        self, headers: Sequence[Header], body: bytes, read_s: float, request_id: str, is_gone: bool
    ) -> Reply:
        self._guard.check(headers, "retrieve")
        scope = {"headers": headers, "query_string": b""}
        deadline_s = read_s + check_head(scope, self._limits)
        check_body(len(body), self._limits)
        if is_gone:
            raise RefusedRequest(400, "the client went away")
        call = Call(body, request_id, {}, deadline_s, scope)
        reply = answer_whole(self._handler, self._overload, call, time.perf_counter())
        assert isinstance(reply, Reply), "the route's handler answers at once"
        return reply
