"""The synthetic training task of the training benchmarks: one definition for every system.

1M users, 200k items drawn by a Zipf-like popularity, 4 categorical features a side. `draw` needs
NumPy alone, so that the other systems' environments can import it.
Legend: `n` examples.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "BATCH",
    "FEATURE_DIM",
    "HIDDEN",
    "ID_DIM",
    "ITEM_CARDINALITIES",
    "NUM_ITEMS",
    "NUM_USERS",
    "TEMPERATURE",
    "USER_CARDINALITIES",
    "VECTOR_DIM",
    "Task",
    "draw",
    "flops_per_example",
]

NUM_USERS: Final = 1_000_000
NUM_ITEMS: Final = 200_000
USER_CARDINALITIES: Final = (100, 1_000, 50, 10_000)
ITEM_CARDINALITIES: Final = (50_000, 1_000, 100, 50)
ID_DIM: Final = 64
FEATURE_DIM: Final = 16
HIDDEN: Final = 128
VECTOR_DIM: Final = 64
TEMPERATURE: Final = 0.07
BATCH: Final = 4_096


class Task(NamedTuple):
    """Examples and the features of who and what occurs in them."""

    user: npt.NDArray[np.int64]
    """`[n]`."""
    item: npt.NDArray[np.int64]
    """`[n]`."""
    log_probability: npt.NDArray[np.float32]
    """`[n]`, log of the probability that an example is of this item."""
    user_features: npt.NDArray[np.int64]
    """`[users, 4]`, values below `USER_CARDINALITIES`."""
    item_features: npt.NDArray[np.int64]
    """`[items, 4]`, values below `ITEM_CARDINALITIES`."""


def draw(num_examples: int, *, num_users: int = NUM_USERS, seed: int = 0) -> Task:
    """Return examples of items of popularity `1 / (rank + 50)`, users of log-normal activity."""
    rng = np.random.default_rng(seed)
    by_rank = 1.0 / (np.arange(NUM_ITEMS) + 50.0)
    by_rank /= by_rank.sum()
    activity = np.cumsum(rng.lognormal(0, 1.2, num_users))
    users = np.searchsorted(activity, rng.random(num_examples) * activity[-1])
    ranks = np.searchsorted(np.cumsum(by_rank), rng.random(num_examples))
    item_of_rank = rng.permutation(NUM_ITEMS)
    ranks = np.minimum(ranks, NUM_ITEMS - 1)
    return Task(
        np.minimum(users, num_users - 1).astype(np.int64),
        item_of_rank[ranks],
        np.log(by_rank[ranks]).astype(np.float32),
        np.stack([rng.integers(0, size, num_users) for size in USER_CARDINALITIES], 1),
        np.stack([rng.integers(0, size, NUM_ITEMS) for size in ITEM_CARDINALITIES], 1),
    )


def flops_per_example(batch: int) -> dict[str, int]:
    """Return the multiplications and additions of both towers and of the logits, with gradients."""
    inputs = ID_DIM + 4 * FEATURE_DIM
    tower = 2 * (inputs * HIDDEN + HIDDEN * VECTOR_DIM)
    return {"towers": 3 * 2 * tower, "logits": 3 * 2 * VECTOR_DIM * batch}


def field_offsets(cardinalities: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return where each field's values begin in one table of all of them, `int64[4]`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(cardinalities)[:-1]])


def as_columns(task: Task) -> dict[str, Any]:
    """Return the examples as an array a column, features looked up, as libraries want them."""
    return {
        "user": task.user,
        "item": task.item,
        "user_features": task.user_features[task.user],
        "item_features": task.item_features[task.item],
        "log_probability": task.log_probability,
    }
