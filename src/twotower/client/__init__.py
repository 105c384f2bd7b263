"""The typed client of `twotower serve`: the extra `client`, no engine and no torch.

with Client("http://127.0.0.1:8080", timeout_s=0.2) as client:
    answer = client.retrieve(712, k=20)
"""

from __future__ import annotations

from twotower.client.client import AsyncClient, Client
from twotower.client.errors import (
    ClientError,
    Conflict,
    ConnectionFailed,
    DeadlineExpired,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    RequestRefused,
    ServerFailed,
    Unavailable,
)

__all__ = [
    "AsyncClient",
    "Client",
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
]
