"""One call's attempts: the same for both clients, which only differ in how they wait.

The time that the caller gives is for the whole call. Every attempt tells the server what is left
of it and waits no longer; a pause that would not fit, the server's own `Retry-After` included,
is not begun: the last error is raised at once instead.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

import httpx
import msgspec
from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from twotower.client.call import Call
from twotower.client.errors import (
    ClientError,
    ConnectionFailed,
    DeadlineExpired,
    ServerFailed,
    Unavailable,
    error_of,
)
from twotower.serving.problems import Problem

__all__ = ["Attempts", "Options"]

T = TypeVar("T")
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
_LEAST_S: Final = 0.001
_MAX_TIMEOUT_MS: Final = 3_600_000


class Options(NamedTuple):
    """How calls are made."""

    timeout_s: float
    retries: int
    headers: Mapping[str, str]


class Attempts(Generic[T]):
    """Makes the requests of one call and understands their answers."""

    def __init__(self, call: Call[T], options: Options) -> None:
        """The time runs from here on."""
        self._call = call
        self._options = options
        self._ends_s = time.monotonic() + options.timeout_s
        self._key = {"Idempotency-Key": secrets.token_hex(16)} if call.takes_key else {}

    def policy(self) -> dict[str, Any]:
        """Return when to try again, in tenacity's words."""
        most = 1 + self._options.retries if self._call.is_idempotent else 1
        return {
            "stop": stop_after_attempt(most) | stop_before_delay(self._options.timeout_s),
            "wait": _pause_s,
            "retry": retry_if_exception_type((ConnectionFailed, Unavailable)),
            "reraise": True,
        }

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the next attempt's request.

        Raises:
            DeadlineExpired: there is no time left for it.
        """
        left_s = self._ends_s - time.monotonic()
        if left_s < _LEAST_S:
            raise self._expired()
        headers = {
            "Accept": "application/json",
            "X-Request-Timeout-Ms": str(min(_MAX_TIMEOUT_MS, int(left_s * 1000))),
            **self._key,
            **self._options.headers,
        }
        call = self._call
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        return http.build_request(
            call.method, call.path, content=call.body, headers=headers, timeout=left_s
        )

    def answer(self, response: httpx.Response) -> T:
        """Return the answer.

        Raises:
            ClientError: it is none.
        """
        if response.status_code not in self._call.answers_with:
            raise _problem(response)
        try:
            return msgspec.json.decode(response.content, type=self._call.answer)
        except msgspec.MsgspecError as error:
            raise ServerFailed(
                f"expected {self._call.answer.__name__} from {response.url}, found something "
                f"else: {error}; is it a twotower server of this version?",
                status=response.status_code,
            ) from error

    def failure(self, error: httpx.HTTPError) -> ClientError:
        """Return what a failure below HTTP means."""
        if isinstance(error, httpx.TimeoutException):
            return self._expired()
        what = str(error) or type(error).__name__
        return ConnectionFailed(f"{self._call.path} was not answered: {what}")

    def _expired(self) -> DeadlineExpired:
        return DeadlineExpired(
            f"{self._call.path} was not answered within {self._options.timeout_s:g} s"
        )


def _pause_s(state: RetryCallState) -> float:
    """Return how long to wait: some random time that doubles, and no less than was asked for."""
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, ClientError) else None
    own_s = wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S)(state)
    return max(own_s, asked_s or 0.0)


def _problem(response: httpx.Response) -> ClientError:
    """Return what the server said, or what somebody between did."""
    status, after = response.status_code, response.headers.get("retry-after", "")
    retry_after_s = float(after) if after.isdecimal() else None
    request_id: str | None = response.headers.get("x-request-id")
    faults = []
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
        detail, faults = f"{problem.title}: {problem.detail}", problem.errors
    except msgspec.MsgspecError:
        detail = response.text[:200] or response.reason_phrase
    return error_of(status)(
        f"{status} {detail}",
        status=status,
        request_id=request_id,
        faults=faults,
        retry_after_s=retry_after_s,
    )
