"""Who may ask for what: finds the key of a request and the scope that its path needs.

Where a project never had a key, everybody who reaches the server may ask for everything; from the
first key on, every path but those of health and documents needs one. A key that was found once is
looked up by its bytes from then on, which costs less than hashing it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from twotower.errors import CorruptArtifact
from twotower.publishing.checked import Fingerprint
from twotower.serving.keys import (
    ApiKey,
    KeyRegister,
    hash_key,
    key_fingerprint,
    read_keys,
)
from twotower.serving.problems import RefusedRequest
from twotower.serving.rates import RateLimit
from twotower.serving.routes import RouteScope

__all__ = ["Guard", "Pass"]

Headers = Sequence[tuple[bytes, bytes]]

_LOGGER: Final = logging.getLogger("twotower")
_BEARER: Final = b"bearer "
_MAX_KNOWN: Final = 4096
_MAX_KEY_BYTES: Final = 512
"""Of both headers together; longer ones hold no key of ours."""


class Pass(NamedTuple):
    """What a key opens, ready to be asked a thousand times a second."""

    key_id: str
    scopes: frozenset[str]
    expires_s: float
    """Seconds since 1970; infinite where it does not end by itself."""
    is_revoked: bool
    sha256: str


class Guard:
    """Keeps the keys of one process. All of it belongs to the thread of the event loop."""

    def __init__(
        self, data_path: Path, *, requires_key: bool, rates: RateLimit | None = None
    ) -> None:
        """Read the keys.

        Args:
            data_path: The project's data folder.
            requires_key: Refuse requests without a key, also while the project has none.
            rates: How often a key may ask; None: as often as it likes.
        """
        self._data_path = data_path
        self._requires_key = requires_key
        self._rates = rates
        self._passes: list[Pass] = []
        self._known: dict[tuple[bytes, bytes], Pass] = {}
        """By both headers as they came."""
        self._seen: Fingerprint | None = None
        self.look()

    def look(self) -> None:
        """Read the keys again if they changed.

        Damaged ones change nothing: the last good ones stay. Removing the file opens nothing.
        """
        found = key_fingerprint(self._data_path)
        if found == self._seen:
            return
        self._seen = found
        self._requires_key = True
        try:
            register = read_keys(self._data_path) or KeyRegister()
        except (CorruptArtifact, OSError) as error:
            _LOGGER.error("keys_not_read problem=%r active=%d", str(error), len(self._passes))
            return
        self._passes = list(map(_pass, register.keys))
        self._known = {}
        _LOGGER.info("keys_read active=%d", len(register.active(int(time.time() * 1000))))

    def follow(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        """Look at the keys from now on, for as long as the loop runs."""
        self.look()
        loop.call_later(every_s, self.follow, loop, every_s)

    def check(self, headers: Headers, scope: RouteScope) -> Pass | None:
        """Return what the request's key opens; None where it needs none.

        Raises:
            RefusedRequest: there is no key (401), none that is good (401), its scopes do not
                hold this one (403), or it has asked too often (429).
        """
        if scope == "open" or not self._requires_key:
            return None
        authorization = given = b""
        for name, value in headers:
            if name == b"authorization":
                authorization = value
            elif name == b"x-api-key":
                given = value
        found = self._known.get((authorization, given)) or self._find(authorization, given)
        if found is None:
            raise _unauthorized("the API key is none of this server's", "invalid_token")
        if found.is_revoked:
            raise _unauthorized("the API key was revoked; ask for another one", "invalid_token")
        if time.time() >= found.expires_s:
            raise _unauthorized("the API key has expired; ask for another one", "invalid_token")
        if scope not in found.scopes:
            raise _forbidden(scope, found)
        if self._rates is not None:
            self._rates.take(found.key_id, scope)
        return found

    def _find(self, authorization: bytes, given: bytes) -> Pass | None:
        """Return whose key a request brings, and know it from now on by its headers' bytes.

        How long it takes tells nothing about any of the keys.

        Raises:
            RefusedRequest: it brings none.
        """
        is_bearer = authorization[: len(_BEARER)].lower() == _BEARER
        token = authorization[len(_BEARER) :] if is_bearer else given
        if not token:
            raise _unauthorized("expected an API key, found none; send it as Authorization: Bearer")
        if len(authorization) + len(given) > _MAX_KEY_BYTES:
            return None
        digest = hash_key(token)
        found = None
        for candidate in self._passes:
            if hmac.compare_digest(candidate.sha256, digest):
                found = candidate
        if found is not None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[authorization, given] = found
        return found


def _pass(key: ApiKey) -> Pass:
    return Pass(
        key_id=key.key_id,
        scopes=frozenset(key.scopes),
        expires_s=float("inf") if key.expires_ms is None else key.expires_ms / 1000,
        is_revoked=key.revoked_ms is not None,
        sha256=key.sha256,
    )


def _unauthorized(detail: str, error: str = "") -> RefusedRequest:
    reason = f', error="{error}"' if error else ""
    challenge = f'Bearer realm="twotower"{reason}'
    return RefusedRequest(401, detail, headers=((b"www-authenticate", challenge.encode()),))


def _forbidden(scope: RouteScope, found: Pass) -> RefusedRequest:
    has = ", ".join(sorted(found.scopes))
    challenge = f'Bearer realm="twotower", error="insufficient_scope", scope="{scope}"'
    return RefusedRequest(
        403,
        f"expected a key with the scope '{scope}', found '{found.key_id}' with: {has}; ask for one "
        "that has it",
        headers=((b"www-authenticate", challenge.encode()),),
    )
