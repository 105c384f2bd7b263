"""What can become of a call instead of an answer.

TwoTowerError
└── ClientError                 no answer
    ├── RequestRefused          4xx: the request is at fault; sending it again changes nothing
    │   ├── InvalidRequest      400, 413, 415, 422: `faults` says where
    │   ├── NotAuthenticated    401: no key, or none that is known
    │   ├── NotPermitted        403: the key lacks the scope
    │   ├── NotFound            404: no such path, generation or item
    │   └── Conflict            409: what is there contradicts it, or cannot be read
    ├── DeadlineExpired         504, or the time that the caller gave is over on this side
    ├── Unavailable             429, 502, 503: not now; `retry_after_s` where the server says when
    ├── ServerFailed            any other 5xx, or an answer that cannot be understood
    └── ConnectionFailed        nobody listens there, or the connection broke
"""

from __future__ import annotations

from typing import Final

from twotower.errors import TwoTowerError
from twotower.serving.problems import Fault

__all__ = [
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExpired",
    "InvalidRequest",
    "NotAuthenticated",
    "NotFound",
    "NotPermitted",
    "RequestRefused",
    "ServerFailed",
    "Unavailable",
    "error_of",
]


class ClientError(TwoTowerError):
    """A call without an answer; the message has what the server said."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        faults: list[Fault] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, None where there was no answer at all."""
        self.request_id = request_id
        """What the server's log knows the request by."""
        self.faults = faults or []
        self.retry_after_s = retry_after_s


class RequestRefused(ClientError):
    """The request is at fault; sending it again changes nothing."""


class InvalidRequest(RequestRefused):
    """The body cannot be read, or a field is wrong: `faults` has the paths."""


class NotAuthenticated(RequestRefused):
    """The server wants a key, or does not know this one."""


class NotPermitted(RequestRefused):
    """The key lacks the scope that the message names."""


class NotFound(RequestRefused):
    """There is no such path, generation or item."""


class Conflict(RequestRefused):
    """What is there contradicts the request, or cannot be read."""


class DeadlineExpired(ClientError):
    """The time for the call is over."""


class Unavailable(ClientError):
    """The server cannot answer now, or has too much to do."""


class ServerFailed(ClientError):
    """The server failed, or its answer cannot be understood."""


class ConnectionFailed(ClientError):
    """Nobody listens there, or the connection broke."""


_BY_STATUS: Final[dict[int, type[ClientError]]] = {
    **dict.fromkeys((400, 413, 415, 422), InvalidRequest),
    401: NotAuthenticated,
    403: NotPermitted,
    404: NotFound,
    409: Conflict,
    **dict.fromkeys((429, 502, 503), Unavailable),
    504: DeadlineExpired,
}


def error_of(status: int) -> type[ClientError]:
    """Return what a status that is no answer becomes."""
    return _BY_STATUS.get(status, RequestRefused if status < 500 else ServerFailed)
