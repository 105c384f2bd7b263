"""Conditions on item features: which items an answer may hold, whoever brought them.

An item is compared as the generation knows it: by the values that its model was trained with, and
by numbers to the precision of a float32. A value that was never admitted is not told from a
missing one, so a condition that names one is answered on the safe side and the answer says so.
Legend: `N` items of the base generation, `M` items that can be found, `n` of some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.schema import EncodedFeatures
from twotower.errors import DataError, suggestion
from twotower.publishing.day_items import item_profile
from twotower.publishing.encoding import Encoder
from twotower.serving.known_items import KnownItems
from twotower.serving.messages import Condition
from twotower.serving.overlay import Overlay

__all__ = ["EVERYTHING", "Allowed", "ItemFilter", "WrongCondition"]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

_REMEMBERED: Final = 16
"""Filters whose items are remembered: a byte an item each, and about as much again in the index."""


class WrongCondition(DataError):
    """A condition that no item of this model can be compared with."""

    def __init__(self, place: str, detail: str) -> None:
        super().__init__(f"{detail}; nothing was searched")
        self.place = place
        """Its path in the request, below the filter: `[0].feature`."""


class Allowed(NamedTuple):
    """The items that meet all conditions."""

    mask: BoolArray | None
    """`bool[M]`; None where nothing is asked of an item."""
    degraded: list[str]
    """Which conditions name values that the model does not know: `filter:genre=unseen`."""


EVERYTHING: Final = Allowed(None, [])


class ItemFilter:
    """The features of all items that one retriever can find."""

    def __init__(self, overlay: Overlay, items: KnownItems) -> None:
        self._encoder = overlay.base.encoder
        self._overlay = overlay
        self._items = items
        self._day: tuple[IntArray, EncodedFeatures] | None = None
        self._remembered: dict[bytes, Allowed] = {}

    def allowed(self, conditions: Sequence[Condition]) -> Allowed:
        """Return which items meet all conditions.

        Raises:
            WrongCondition: an item has no such feature, or it cannot be compared in this way.
        """
        key = msgspec.json.encode(conditions)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = self._allowed(conditions)
        return found

    def _allowed(self, conditions: Sequence[Condition]) -> Allowed:
        numbers, of_day = self._day_items()
        num_base = len(self._encoder.items)
        mask = np.ones(num_base + len(self._overlay.added), np.bool_)
        day_mask = np.ones(len(numbers), np.bool_)
        notes: list[str] = []
        for place, condition in enumerate(conditions):
            check = _Check(self._encoder, condition, f"[{place}]")
            mask[:num_base] &= check.holds(self._encoder.items.profiles)
            mask[num_base:] &= check.holds(self._encoder.item_features.missing(1))[0]
            day_mask &= check.holds(of_day)
            notes += check.notes
        mask[numbers] = day_mask  # these have the features that they came with
        mask.flags.writeable = False  # what never changes is worked out once by an index
        return Allowed(mask, list(dict.fromkeys(notes)))

    def _day_items(self) -> tuple[IntArray, EncodedFeatures]:
        """Return the numbers of the items that the day added, and the features they came with."""
        if self._day is None:
            items = self._overlay.items
            numbers = self._items.positions_of(items.vectors.item_ids)
            ids = self._items.decode(numbers[numbers >= 0])
            profiles = [item_profile(self._encoder, items.added[item_id]) for item_id in ids]
            parts = [self._encoder.item_features.missing(0), *profiles]
            columns = zip(*parts, strict=True)
            self._day = (
                numbers[numbers >= 0],
                EncodedFeatures(*(np.concatenate(column) for column in columns)),
            )
        return self._day


class _Check:
    """One condition, ready to be compared with encoded features."""

    def __init__(self, encoder: Encoder, condition: Condition, place: str) -> None:
        spec = encoder.item_features
        field = spec.field_of(condition.feature)
        if field is None:
            known = [field.name for field in spec.fields]
            raise WrongCondition(
                f"{place}.feature",
                f"unknown item feature '{condition.feature}'; known: {', '.join(known) or 'none'}"
                f"{suggestion(condition.feature, known)}",
            )
        self.notes: list[str] = []
        """Which of its values the model does not know."""
        self._encoder = encoder
        self._field = field
        self._condition = condition
        self._place = place
        self._refuse_what_does_not_fit()
        self._any_of = self._rows(condition.any_of)
        self._none_of = self._rows(condition.none_of)
        if self.notes and condition.none_of:
            self._none_of.append(field.missing_row)  # it may be what was never admitted

    def _refuse_what_does_not_fit(self) -> None:
        condition, field = self._condition, self._field
        has_values = condition.any_of is not None or condition.none_of is not None
        has_range = condition.at_least is not None or condition.at_most is not None
        if field.limits is not None and (has_values or has_range):
            found = "is kept in quantile buckets, which no value can be compared with"
        elif field.role == "numeric" and has_values:
            found = "is a number or a time: expected at_least and at_most"
        elif field.role != "numeric" and has_range:
            found = "has values without an order: expected any_of and none_of"
        else:
            return
        raise WrongCondition(self._place, f"item feature '{field.name}' {found}")

    def _rows(self, values: Sequence[object] | None) -> list[int]:
        """Return the rows of the values that have one."""
        rows = []
        for value in values or ():
            row = self._encoder.item_features.value_row(self._field, value)
            if row is None:
                self.notes.append(f"filter:{self._field.name}=unseen")
            else:
                rows.append(row)
        return rows

    def holds(self, features: EncodedFeatures) -> BoolArray:
        """Return which of `n` items meet the condition: `bool[n]`."""
        spec, field = self._encoder.item_features, self._field
        if field.role == "numeric":
            return self._holds_number(features.numeric, 2 * spec.measured.index(field))
        if field.role == "multi":
            return self._holds_values(features.multi[:, spec.listed.index(field)])
        return self._holds_values(features.categorical[:, spec.coded.index(field), None])

    def _holds_values(self, rows: npt.NDArray[np.int32]) -> BoolArray:
        """Compare rows of the feature table, `int32[n, L]`, -1 for padding."""
        condition = self._condition
        if condition.any_of is None and condition.none_of is None:
            return np.asarray(rows[:, 0] != self._field.missing_row, np.bool_)
        holds = np.ones(len(rows), np.bool_)
        if condition.any_of is not None:
            holds &= self._among(rows, self._any_of)
        if condition.none_of is not None:
            holds &= ~self._among(rows, self._none_of)
        return holds

    def _among(self, rows: npt.NDArray[np.int32], wanted: list[int]) -> BoolArray:
        is_wanted = np.zeros(self._encoder.item_features.num_rows + 1, np.bool_)
        is_wanted[wanted] = True  # the last one is that of padding, -1
        return np.asarray(is_wanted[rows].any(axis=1), np.bool_)

    def _holds_number(self, numeric: npt.NDArray[np.float32], column: int) -> BoolArray:
        values = numeric[:, column]
        holds: BoolArray = np.asarray(numeric[:, column + 1] > 0, np.bool_)
        low, high = self._condition.at_least, self._condition.at_most
        if self._field.settings.kind == "timestamp":
            low, high = high, low  # what is stored is the age
        if low is not None:
            holds &= values >= self._bound(low)
        if high is not None:
            holds &= values <= self._bound(high)
        return holds

    def _bound(self, value: object) -> np.float32:
        measured = self._field.measure(value)
        if np.isnan(measured):
            raise WrongCondition(self._place, f"expected a number or a time, found {value!r}")
        return np.float32(self._field.scaled(np.array([measured]), self._encoder.as_of_ms)[0])
