"""The trainer's own vectors, from torch: what the served ones are held against.

Legend: `n` asked for, `D` vector dimension without the popularity coordinate.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint
from twotower.data.schema import EncodedFeatures
from twotower.data.user_state import take_ragged
from twotower.model.towers import Features, History

__all__ = ["trainer_item_vectors", "trainer_user_vectors"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def trainer_user_vectors(checkpoint: Checkpoint, positions: IntArray) -> FloatArray:
    """Return the vectors of known users as the trainer computes them: `[n, D]`."""
    device = checkpoint.model.device
    rows = torch.from_numpy(checkpoint.users.rows[positions]).to(device)
    features = _features(checkpoint.user_profiles, positions, device)
    with torch.no_grad():
        vectors, _ = checkpoint.model.encode_users(rows, features, _history(checkpoint, positions))
    return np.asarray(vectors.cpu().numpy())


def trainer_item_vectors(checkpoint: Checkpoint, positions: IntArray) -> FloatArray:
    """Return the vectors of items as the trainer computes them: `[n, D]`."""
    device = checkpoint.model.device
    rows = torch.from_numpy(checkpoint.items.rows[positions]).to(device)
    with torch.no_grad():
        vectors, _ = checkpoint.model.encode_items(
            rows, _features(checkpoint.item_profiles, positions, device)
        )
    return np.asarray(vectors.cpu().numpy())


def _history(checkpoint: Checkpoint, positions: IntArray) -> History | None:
    length = checkpoint.meta.model.history_length
    if not length:
        return None
    recent = checkpoint.user_state.recent
    end = recent.offsets[positions + 1]
    past = take_ragged(recent, np.maximum(recent.offsets[positions], end - length), end)
    rows = checkpoint.items.rows[past.values]
    device = checkpoint.model.device
    starts = torch.from_numpy(past.offsets[:-1])
    return History(torch.from_numpy(rows).to(device), starts.to(device))


def _features(profiles: EncodedFeatures, positions: IntArray, device: torch.device) -> Features:
    return Features(
        torch.from_numpy(profiles.categorical[positions]).long().to(device),
        torch.from_numpy(profiles.numeric[positions]).to(device),
        torch.from_numpy(profiles.multi[positions]).long().to(device),
    )
