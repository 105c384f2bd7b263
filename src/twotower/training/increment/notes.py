"""What an incremental update notes of the stream before it learns: IDs, bounds, histories, counts.

Everything here follows from the base and the positives noted so far, in the same portions: noting
them again gives the same state, bit for bit, which is how a stopped update finds it.
Legend: `n` positives, `t` of them trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.checkpoint import Checkpoint, Turnover
from twotower.data.examples import Examples
from twotower.data.ids import IdMap, decode_ids
from twotower.data.schema import EncodedFeatures, IdArray, IntArray
from twotower.training.growth import admit, encode_profiles
from twotower.training.increment.positives import Positives
from twotower.training.increment.settings import IncrementSettings
from twotower.training.increment.stream_histories import StreamHistories
from twotower.training.increment.user_limit import UserLimit
from twotower.training.settings import AdmissionSettings

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Noted", "StreamNotes"]

_MS_PER_S: Final = 1000
_MS_PER_DAY: Final = 86_400_000


class Noted(NamedTuple):
    """What of some positives is to be trained."""

    examples: Examples
    """`t`."""
    log_probability: npt.NDArray[np.float32]
    """`[t]`, log of each example's item frequency at its time."""
    over_limit: int
    """Left out, because their users had their share."""
    admitted: Turnover


class StreamNotes:
    """Advances everything of a checkpoint that is no parameter."""

    def __init__(
        self,
        state: Checkpoint,
        settings: IncrementSettings,
        admission: AdmissionSettings,
        item_table: pl.DataFrame | None,
    ) -> None:
        """Note on `state`, in place.

        Args:
            state: the update's own.
            settings: the bound a user.
            admission: when an ID earns a row.
            item_table: features of items, where those of the day have some; an item that is not
                there counts as one of whom nothing is known.
        """
        self._state = state
        self._admission = admission
        self._item_table = item_table
        self._limit = UserLimit(settings.user_limit, settings.user_window_s * _MS_PER_S)
        self._histories = StreamHistories(state.user_state.recent, state.meta.model.history_length)

    def note(self, positives: Positives) -> Noted:
        """Take in the next positives of the stream."""
        state = self._state
        users, items = self._know(positives)
        times = positives.event_time_ms
        histories = self._histories.extend(users, items, times)
        taken = self._limit.take(users, times)
        day = int(times.max(initial=0)) // _MS_PER_DAY
        admitted = admit(state, users[taken], items[taken], day, self._admission)
        state.frequency.grow(len(state.items))
        examples = Examples(
            event_id=positives.offset[taken].astype(np.uint64),
            user=users[taken],
            item=items[taken],
            event_time_ms=times[taken],
            weight=positives.weight[taken],
            past=histories.past,
            history_start=histories.start[taken],
            history_end=histories.end[taken],
        )
        log_probability = state.frequency.observe(examples.item)
        return Noted(examples, log_probability, int((~taken).sum()), admitted)

    def _know(self, positives: Positives) -> tuple[IntArray, IntArray]:
        """Make the IDs known; return their positions.

        Of a new user nothing is known but the ID, and serving knows no more; a new item has the
        features of the item table, encoded by the base's specification.
        """
        state = self._state
        num_users, num_items = len(state.users), len(state.items)
        users, items = state.users.add(positives.user_id), state.items.add(positives.item_id)
        if new := len(state.users) - num_users:
            state.user_profiles = _joined(state.user_profiles, state.user_features.missing(new))
        if len(state.items) > num_items:
            encoded = self._encode(state.items.ids[num_items:])
            state.item_profiles = _joined(state.item_profiles, encoded)
            state.corpus = np.concatenate([state.corpus, np.arange(num_items, len(state.items))])
        return users, items

    def _encode(self, item_ids: IdArray) -> EncodedFeatures:
        """Return the features of new items, whose IDs ascend."""
        state, frame = self._state, self._item_table
        if frame is not None:
            frame = frame.filter(frame["item_id"].is_in(decode_ids(item_ids)))
        ids = IdMap(state.items.kind)
        ids.add(item_ids)
        cut_ms = state.meta.window.cut_ms
        return encode_profiles(state.item_features, ids, frame, "item_id", cut_ms)


def _joined(known: EncodedFeatures, new: EncodedFeatures) -> EncodedFeatures:
    return EncodedFeatures(*(np.concatenate(parts) for parts in zip(known, new, strict=True)))
