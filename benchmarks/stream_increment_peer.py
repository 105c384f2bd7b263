"""The usual way to learn ID embeddings online: sparse `nn.Embedding`, Adagrad, all logits.

The same events as `stream_increment`: towers and features frozen, ID rows of users and items move,
softmax over the mini-batch, logQ. Nothing is looked up, bounded, counted or left out, as a stream
would need it.
"""

from __future__ import annotations

import time
from typing import Final

import torch
from torch import nn
from torch.nn import functional

import training_workload as workload

__all__ = ["sparse_adagrad"]

WARM_UP: Final = 16


def sparse_adagrad(task: workload.Task, batch: int, steps: int) -> float:
    """Return the events a second of some steps."""
    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()  # else it warns at every step
    users = Side(workload.NUM_USERS, workload.USER_CARDINALITIES)
    items = Side(workload.NUM_ITEMS, workload.ITEM_CARDINALITIES)
    optimizer = torch.optim.Adagrad([users.ids.weight, items.ids.weight], lr=0.05)
    columns = [torch.from_numpy(one) for one in (task.user, task.item, task.log_probability)]
    features = [torch.from_numpy(one) for one in (task.user_features, task.item_features)]
    own = torch.arange(batch)
    began = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began = time.perf_counter()
        user, item, log_probability = (one[step * batch : (step + 1) * batch] for one in columns)
        optimizer.zero_grad()
        vectors = users(user, features[0][user]), items(item, features[1][item])
        logits = vectors[0] @ vectors[1].T / workload.TEMPERATURE - log_probability
        loss = functional.cross_entropy(logits, own)
        loss.backward()
        optimizer.step()
    return steps * batch / (time.perf_counter() - began)


class Side(nn.Module):
    """A tower over an ID embedding that learns and features that do not."""

    def __init__(self, size: int, cardinalities: tuple[int, ...]) -> None:
        super().__init__()
        self.offsets = torch.from_numpy(workload.field_offsets(cardinalities))
        self.ids = nn.Embedding(size, workload.ID_DIM, sparse=True)
        self.fields = nn.Embedding(sum(cardinalities), workload.FEATURE_DIM)
        inputs = workload.ID_DIM + len(cardinalities) * workload.FEATURE_DIM
        self.dense = nn.Sequential(
            nn.Linear(inputs, workload.HIDDEN), nn.ReLU(),
            nn.Linear(workload.HIDDEN, workload.VECTOR_DIM),
        )  # fmt: skip
        self.fields.requires_grad_(False)
        self.dense.requires_grad_(False)

    def forward(self, ids: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
        """Return unit vectors."""
        features = self.fields(fields + self.offsets).flatten(1)
        return functional.normalize(self.dense(torch.cat([self.ids(ids), features], 1)), dim=1)
