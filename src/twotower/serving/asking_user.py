"""The user of one request: what is known of him, and what the request says instead.

Legend: `H` recent clicks, `D` vector dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.ids import Id
from twotower.data.schema import EncodedFeatures
from twotower.publishing.encoding import Encoder
from twotower.serving.known_items import KnownItems
from twotower.serving.overlay import Overlay
from twotower.serving.profiles import OF_GENERATION, StoredProfile
from twotower.serving.user_state import NO_ACTIONS, UserActions, UserEvents

__all__ = ["AskingUser", "KnownUsers", "joined"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_NOTHING: Final = np.zeros(0, np.int64)


class AskingUser(NamedTuple):
    """What a user's vector is made from."""

    position: int
    """-1 for one that the generation does not know."""
    embedding: FloatArray | None
    """`[1, id_dim]`, a newer ID row than the generation's."""
    profile: EncodedFeatures
    clicks: IntArray
    """`int64[H]`: recent clicks as item numbers, oldest first."""
    actions: UserActions
    degraded: list[str]
    """Why the answer is less than it could be."""

    def vector(self, encoder: Encoder) -> FloatArray:
        """Return the user vector, `[1, D]`."""
        return encoder.user_vector(self.position, self.profile, self.clicks, self.embedding)


class KnownUsers:
    """What one retriever knows of its users."""

    def __init__(
        self, encoder: Encoder, overlay: Overlay, state: UserEvents | None, items: KnownItems
    ) -> None:
        self._encoder = encoder
        self._overlay = overlay
        self._state = state
        self._items = items
        self._history_length = overlay.base.generation.manifest.history_length

    def asking(
        self,
        user_id: Id,
        features: Mapping[str, object],
        recent: Sequence[Id] | None,
        stored: StoredProfile = OF_GENERATION,
    ) -> AskingUser:
        """Return the user of a request; arguments as for `Retriever.retrieve`.

        Raises:
            ConfigError: a feature is none of the model's.
            DataError: an ID is of the wrong kind.
        """
        user = self._encoder.users.stored_form([user_id])
        position = self._encoder.users.position_of(user)
        embedding = self._overlay.user_embedding(user)
        profile, notes = self._profile(position, features, stored)
        actions = NO_ACTIONS if self._state is None else self._state.of(user)
        clicks, unknown_clicks = self._recent(position, actions, recent)
        degraded = ["unknown_user"] if position < 0 and embedding is None else []
        degraded += notes
        if unknown_clicks:
            degraded.append("recent:unknown_items")
        return AskingUser(position, embedding, profile, clicks, actions, degraded)

    def _profile(
        self, position: int, features: Mapping[str, object], stored: StoredProfile
    ) -> tuple[EncodedFeatures, list[str]]:
        """Return the features of a user, and which of them say nothing.

        Of a user that nobody knows and of whom nothing was said, that is clear without a list.
        """
        if stored.values is None:
            profile, notes = self._encoder.profile(position, features)
        else:
            known = self._encoder.user_features.field_names
            values = {name: value for name, value in stored.values.items() if name in known}
            features = {**values, **features}
            profile, notes = self._encoder.profile(-1, features)
        notes.extend(stored.notes)
        if position < 0 and not features:
            return profile, notes
        for name in self._encoder.user_features.lacking(profile, 0):
            missing = f"feature:{name}=missing"
            if missing not in notes and f"feature:{name}=unseen" not in notes:
                notes.append(missing)
        return profile, notes

    def _recent(
        self, position: int, actions: UserActions, recent: Sequence[Id] | None
    ) -> tuple[IntArray, bool]:
        """Return the user's clicks as item numbers, and whether any given item was unknown."""
        if recent is not None:
            known = self.numbers(recent)
            return known, len(known) < len(recent)
        clicks = self._items.of_codes(actions.clicks)
        if position >= 0:
            clicks = joined([self._encoder.recent.list_at(position), clicks])
        return clicks[max(0, len(clicks) - self._history_length) :], False

    def numbers(self, item_ids: Sequence[Id]) -> IntArray:
        """Return the numbers of those items that can be found."""
        if not item_ids:
            return _NOTHING
        found = self._items.positions_of(self._encoder.items.stored_form(item_ids))
        return found[found >= 0]

    def shown(self, user: AskingUser) -> IntArray:
        """Return the item numbers that the user has seen, may be with repetitions: `int64[m]`."""
        shown = [user.clicks, self._items.of_codes(user.actions.seen)]
        if user.position >= 0:
            shown.append(self._encoder.seen.list_at(user.position))
        return joined(shown)


def joined(lists: Sequence[IntArray]) -> IntArray:
    """Return lists one after the other; most are empty, and numpy takes its time for those too."""
    filled = [numbers for numbers in lists if len(numbers)]
    if len(filled) == 1:
        return filled[0]
    return np.concatenate(filled) if filled else _NOTHING
