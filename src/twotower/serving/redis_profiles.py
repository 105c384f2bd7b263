"""Profiles in Redis: one JSON object a user, by feature, under the prefix and the user's ID.

Values are readable, not rows of a table, so that every generation reads the same store and whoever
knows more of a user now may write it. Serving looks up with one MGET a request; a store that does
not answer in time, or whose answer is no profile, costs a note and never the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from twotower.data.ids import Id
from twotower.errors import ConfigError, MissingExtra, NotReady
from twotower.progress import SILENT, Progress
from twotower.serving.profiles import OF_GENERATION, ProfileStore, StoredProfile
from twotower.serving.settings import ProfileSettings

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["NO_ANSWER", "UNREADABLE", "RedisProfiles", "fill_profiles", "load_redis"]

NO_ANSWER: Final = "profile_store:no_answer"
UNREADABLE: Final = "profile_store:unreadable"

_WRONG_URL: Final = (
    "expected a URL that the Redis client can read, found another in serving.profiles.url; nothing "
    "was looked up or written; correct it"
)
_MAX_CONNECTIONS: Final = 32
_BATCH: Final = 1000
_FILL_TIMEOUT_S: Final = 10.0
_UNKNOWN: Final = StoredProfile({})
_LOST: Final = OF_GENERATION._replace(notes=(NO_ANSWER,))
_SPOILT: Final = OF_GENERATION._replace(notes=(UNREADABLE,))
_PROFILE: Final = msgspec.json.Decoder(dict[str, Any])


def load_redis() -> ModuleType:
    """Import the client.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import redis.asyncio
    except ImportError as error:
        raise MissingExtra("redis", "redis", "profiles in Redis") from error
    module: ModuleType = redis
    return module


class RedisProfiles(ProfileStore):
    """Looks profiles up in Redis; connects when it is first asked."""

    def __init__(self, settings: ProfileSettings, lost: Callable[[str], None]) -> None:
        """Arguments as for `open_profiles`."""
        redis = load_redis()
        self._settings = settings
        self._lost = lost
        self._failures = (redis.RedisError, OSError)
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                settings.url,
                max_connections=_MAX_CONNECTIONS,
                timeout=None,  # `look_up` bounds everything
                retry=redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0),
                protocol=2,
            )
        except ValueError:  # whose text may hold the password
            raise ConfigError(_WRONG_URL) from None
        self._client = redis.asyncio.Redis.from_pool(pool)

    @property
    def is_at_hand(self) -> bool:
        """See `ProfileStore.is_at_hand`."""
        return False

    async def look_up(self, users: Sequence[Id], within_s: float) -> list[StoredProfile]:
        """See `ProfileStore.look_up`; a connection whose answer did not come is given up."""
        keys = [f"{self._settings.prefix}{user}" for user in users]
        try:
            found = await asyncio.wait_for(
                self._client.mget(keys), min(within_s, self._settings.timeout_s)
            )
        except (asyncio.TimeoutError, TimeoutError):
            self._lost("timeout")
            return [_LOST] * len(keys)
        except self._failures:
            self._lost("connection")
            return [_LOST] * len(keys)
        return [self._read(content) for content in found]

    def _read(self, content: bytes | None) -> StoredProfile:
        if content is None:
            return _UNKNOWN
        try:
            return StoredProfile(_PROFILE.decode(content))
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._lost("unreadable")
            return _SPOILT

    async def close(self) -> None:
        """See `ProfileStore.close`."""
        await self._client.aclose()


def fill_profiles(
    settings: ProfileSettings,
    profiles: Iterable[tuple[Id, Mapping[str, object]]],
    num_profiles: int,
    progress: Progress = SILENT,
) -> int:
    """Write profiles, replacing those of the same users and touching no others; return how many.

    Args:
        settings: Where Redis is.
        profiles: Users with their readable features.
        num_profiles: How many will come, for whoever watches.
        progress: Told of every batch.

    Raises:
        NotReady: Redis does not answer; what was written stays, and the same call begins anew.
    """
    redis = load_redis()
    try:
        client = redis.Redis.from_url(settings.url, socket_timeout=_FILL_TIMEOUT_S, protocol=2)
    except ValueError:
        raise ConfigError(_WRONG_URL) from None
    num_written = 0
    rest = iter(profiles)
    progress.begin("profiles", num_profiles, "users")
    try:
        while batch := dict(islice(rest, _BATCH)):
            client.mset({f"{settings.prefix}{u}": msgspec.json.encode(p) for u, p in batch.items()})
            num_written += len(batch)
            progress.advance(len(batch))
    except (redis.RedisError, OSError) as error:
        raise NotReady(
            f"expected Redis to take profiles, found: {error}; {num_written:,} of "
            f"{num_profiles:,} are written; start it, or correct serving.profiles.url, and repeat"
        ) from None
    finally:
        client.close()
    progress.end()
    return num_written
