"""One numbering of all items that an answer may name, whoever brought them.

Legend: `N` items of the base generation, `m` items that came since, `n` asked for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twotower.data.ids import Id, decode_ids, lookup
from twotower.data.schema import IdArray
from twotower.publishing.entities import Entities

__all__ = ["KnownItems"]

IntArray = npt.NDArray[np.int64]


class KnownItems:
    """Numbers every item that an answer may name: those of the base by their positions there.

    Behind them, from `N` on, come those that can be found although the base does not know them,
    and then those that only the log knows.
    """

    def __init__(
        self, base: Entities, added: IdArray | None = None, strange: IdArray | None = None
    ) -> None:
        """Number the items.

        Args:
            base: of the generation.
            added: `[m]`, ascending, none of the base.
            strange: of the log, none of the base, in the order of their codes.
        """
        added = base.ids[:0] if added is None else added
        strange = base.ids[:0] if strange is None else strange
        self._base = base
        self._added = added
        place = lookup(added, None, strange)
        num_found = len(base) + len(added)
        self._of_strange = np.where(
            place >= 0, len(base) + place, num_found + np.arange(len(strange))
        )
        self._behind = np.concatenate([added, strange])

    def positions_of(self, stored: IdArray) -> IntArray:
        """Return the number of each item that can be found, -1 for any other: `int64[n]`."""
        found = self._base.positions_of(stored)
        unknown = found < 0
        if len(self._added) and unknown.any():
            place = lookup(self._added, None, stored[unknown])
            found[unknown] = np.where(place >= 0, len(self._base) + place, -1)
        return found

    def of_codes(self, codes: IntArray) -> IntArray:
        """Return the number of each item by its code in the user state: `int64[n]`."""
        if not len(codes):
            return codes
        is_strange = codes < 0
        if not is_strange.any():
            return codes
        numbers = codes.copy()
        numbers[is_strange] = self._of_strange[-1 - codes[is_strange]]
        return numbers

    def decode(self, numbers: IntArray) -> list[Id]:
        """Return the IDs of the log."""
        is_behind = numbers >= len(self._base)
        if not len(self._behind) or not is_behind.any():
            return self._base.decode(numbers)
        behind = iter(decode_ids(self._behind[numbers[is_behind] - len(self._base)]))
        known = iter(self._base.decode(numbers[~is_behind]))
        return [next(behind if late else known) for late in is_behind.tolist()]
