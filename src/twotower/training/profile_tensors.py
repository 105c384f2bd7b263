"""A side's encoded features as tensors of one step."""

from __future__ import annotations

import torch
from torch import Tensor

from twotower.data.features import EncodedFeatures
from twotower.model.towers import Features

__all__ = ["ProfileTensors"]


class ProfileTensors:
    """A side's encoded features, ready to be picked by position."""

    def __init__(self, profiles: EncodedFeatures, missing: EncodedFeatures) -> None:
        self._categorical = torch.from_numpy(profiles.categorical)
        self._numeric = torch.from_numpy(profiles.numeric)
        self._multi = torch.from_numpy(profiles.multi)
        self._missing = Features(
            torch.from_numpy(missing.categorical).long(),
            torch.from_numpy(missing.numeric),
            torch.from_numpy(missing.multi).long(),
        )

    def pick(self, positions: Tensor, hidden: Tensor | None = None) -> Features:
        """Return the features at `positions`, those of nobody where `hidden`."""
        picked = Features(
            self._categorical.index_select(0, positions).long(),
            self._numeric.index_select(0, positions),
            self._multi.index_select(0, positions).long(),
        )
        if hidden is not None:
            for values, missing in zip(picked, self._missing, strict=True):
                values[hidden] = missing
        return picked
