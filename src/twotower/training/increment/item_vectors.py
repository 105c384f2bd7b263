"""Item vectors of an incremental update: as the index serves them, or encoded with frozen towers.

Legend: `N` items, `C` of them in the base's corpus, `D` vector dimension, `n` asked for.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.checkpoint import Checkpoint
from twotower.data.schema import IntArray
from twotower.training.profile_tensors import ProfileTensors

__all__ = ["encode_items", "served_items"]

FloatArray = npt.NDArray[np.float32]
_BATCH: Final = 4096


def encode_items(state: Checkpoint, positions: IntArray) -> Tensor:
    """Return the vectors of items as the item tower has them now: `[n, D]`, no gradient."""
    profiles = ProfileTensors(state.item_profiles, state.item_features.missing(1))
    vectors = torch.empty(len(positions), state.meta.model.vector_dim)
    with torch.no_grad():
        for start in range(0, len(positions), _BATCH):
            part = torch.from_numpy(positions[start : start + _BATCH])
            rows = torch.from_numpy(state.items.rows)[part]
            encoded, _ = state.model.encode_items(rows, profiles.pick(part))
            vectors[start : start + len(part)] = encoded
    return vectors


def served_items(state: Checkpoint, published: FloatArray | None) -> Tensor:
    """Return what stands for every item while its vector is constant: `[N, D]`.

    Args:
        state: whose items.
        published: `[C, D]`, the vectors of the corpus in the index, a popularity coordinate behind
            them left out; None where none were published.
    """
    if published is None:
        return encode_items(state, np.arange(len(state.items)))
    vectors = torch.empty(len(state.items), state.meta.model.vector_dim)
    vectors[torch.from_numpy(state.corpus)] = torch.from_numpy(
        np.array(published[:, : state.meta.model.vector_dim])
    )
    others = np.setdiff1d(np.arange(len(state.items)), state.corpus)
    vectors[torch.from_numpy(others)] = encode_items(state, others)
    return vectors
