"""The users or the items that a generation knows: IDs, positions, rows, stored features.

Everything is mapped and looked up by binary search, so opening costs no time and processes share
the memory. Legend: `n` asked for, `N` known entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twotower.data.features import EncodedFeatures
from twotower.data.ids import (
    Id,
    IdKind,
    IdMap,
    as_id_array,
    decode_ids,
    lookup,
    lookup_one,
    view_ids,
)
from twotower.data.schema import IdArray
from twotower.errors import DataError

__all__ = ["Artifacts", "Entities", "entity_arrays"]

IntArray = npt.NDArray[np.int64]


class Artifacts(Protocol):
    """Named files: a published generation, or one that is being staged."""

    def read(self, member: str) -> bytes:
        """Return the bytes of a file."""

    def array(self, member: str) -> npt.NDArray[Any]:
        """Return the array in a `.npy` file, mapped."""


def entity_arrays(ids: IdMap, profiles: EncodedFeatures) -> dict[str, npt.NDArray[Any]]:
    """Return one side's arrays by file name, as `Entities` reads them."""
    stored = {"ids": ids.arrays()["ids"], "order": ids.order, "rows": ids.rows}
    return stored | profiles._asdict()


class Entities:
    """The users or the items that a generation knows, over their positions."""

    def __init__(self, artifacts: Artifacts, side: str) -> None:
        stored = artifacts.array(f"{side}/ids.npy")
        self.kind: IdKind = "str" if stored.ndim == 2 else "int"
        self.ids = view_ids(stored)
        self.order: IntArray = artifacts.array(f"{side}/order.npy")
        self.rows: IntArray = artifacts.array(f"{side}/rows.npy")
        self.profiles = EncodedFeatures(
            artifacts.array(f"{side}/categorical.npy"),
            artifacts.array(f"{side}/numeric.npy"),
            artifacts.array(f"{side}/multi.npy"),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, ids: Sequence[Id]) -> IntArray:
        """Return the position of each ID of the log, -1 where it is unknown: `int64[n]`.

        Raises:
            DataError: an ID is of a kind that this log cannot hold.
        """
        return self.positions_of(self.stored_form(ids))

    def positions_of(self, stored: IdArray) -> IntArray:
        """Return the same for IDs that are in their stored form already."""
        return lookup(self.ids, self.order, stored)

    def position_of(self, stored: IdArray) -> int:
        """Return the same for one ID, an array of one element."""
        return lookup_one(self.ids, self.order, stored)

    def normal(self, value: Id) -> Id:
        """Return an ID as the log has it: the text `712` is 712 where IDs are integers.

        Raises:
            DataError: it is of a kind that this log cannot hold.
        """
        return decode_ids(self.stored_form([value]))[0]

    def stored_form(self, ids: Sequence[Id]) -> IdArray:
        """Return IDs of the log as the array that they are looked up by.

        Raises:
            DataError: an ID is of a kind that this log cannot hold.
        """
        for value in ids:
            if isinstance(value, bool) or not isinstance(value, int | str | np.integer):
                raise DataError(f"expected an ID, an integer or a string, found {value!r}")
        return as_id_array(ids, self.kind)

    def decode(self, positions: IntArray) -> list[Id]:
        """Return the IDs of the log at `positions`."""
        return decode_ids(self.ids[positions])

    def profiles_at(self, positions: IntArray) -> EncodedFeatures:
        """Return the stored features at `positions`."""
        categorical, numeric, multi = self.profiles
        return EncodedFeatures(categorical[positions], numeric[positions], multi[positions])

    def profile_at(self, position: int) -> EncodedFeatures:
        """Return the stored features of one entity, as views."""
        one = slice(position, position + 1)
        categorical, numeric, multi = self.profiles
        return EncodedFeatures(categorical[one], numeric[one], multi[one])
