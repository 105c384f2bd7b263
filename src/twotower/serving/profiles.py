"""The profile store: where the features of a user come from that a request does not give.

Two engines: the mapped files of the generation, and Redis, shared by many hosts and changed at any
time. What a store finds travels with the request, so that an answer has one profile throughout.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from twotower.serving.settings import ProfileSettings

if TYPE_CHECKING:
    from twotower.data.ids import Id

__all__ = [
    "OF_GENERATION",
    "GenerationProfiles",
    "ProfileStore",
    "StoredProfile",
    "look_up_one",
    "open_profiles",
]


class StoredProfile(NamedTuple):
    """What a store has of one user."""

    values: Mapping[str, object] | None
    """Readable, by feature, empty for a user whom the store does not know; None: what the
    generation has."""
    notes: tuple[str, ...] = ()
    """For `degraded`: why this is less than it could be."""


OF_GENERATION: Final = StoredProfile(None)
_PATIENCE_S: Final = 5.0


class ProfileStore(abc.ABC):
    """Looks profiles up, in the thread of one event loop."""

    @property
    @abc.abstractmethod
    def is_at_hand(self) -> bool:
        """Whether looking up waits for nothing, so that nobody has to ask before the search."""

    @abc.abstractmethod
    async def look_up(self, users: Sequence[Id], within_s: float) -> list[StoredProfile]:
        """Return the profile of each user, in their order; what is not there in time is noted.

        Args:
            users: IDs in the log's form.
            within_s: No answer comes later than that.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """End its connections; called once."""


class GenerationProfiles(ProfileStore):
    """The mapped files of whatever generation answers."""

    @property
    def is_at_hand(self) -> bool:
        """See `ProfileStore.is_at_hand`."""
        return True

    async def look_up(self, users: Sequence[Id], within_s: float) -> list[StoredProfile]:
        """See `ProfileStore.look_up`."""
        return [OF_GENERATION] * len(users)

    async def close(self) -> None:
        """See `ProfileStore.close`."""


def open_profiles(
    settings: ProfileSettings, lost: Callable[[str], None] = lambda reason: None
) -> ProfileStore:
    """Return the store that is chosen; nothing is connected yet.

    Args:
        settings: Which one, and where it is.
        lost: Told why a look-up gave nothing: `timeout`, `connection` or `unreadable`.

    Raises:
        MissingExtra: the package of the store is not installed.
    """
    if settings.store == "generation":
        return GenerationProfiles()
    from twotower.serving.redis_profiles import RedisProfiles

    return RedisProfiles(settings, lost)


async def look_up_one(settings: ProfileSettings, user: Id) -> StoredProfile:
    """Return one user's profile from the store that is chosen, for somebody who can wait."""
    patient = msgspec.structs.replace(settings, timeout_s=max(settings.timeout_s, _PATIENCE_S))
    store = open_profiles(patient)
    try:
        return (await store.look_up([user], patient.timeout_s))[0]
    finally:
        await store.close()
