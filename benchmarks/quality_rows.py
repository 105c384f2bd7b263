"""What is compared on Gowalla: one recipe and what changes around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from twotower.model.settings import ModelSettings
from twotower.training.settings import (
    IdDropoutSettings,
    NegativeSettings,
    PassSettings,
    TrainingSettings,
)

__all__ = ["MAIN", "ROWS", "Row"]

MODEL: Final = ModelSettings(
    id_dim=64,
    history_dim=64,
    hidden=(),
    history_length=500,
    history_table="item_id",
    skip=False,
    linear_start="identity",
    id_init_std=0.1,
)
TRAINING: Final = TrainingSettings(
    loss="listwise",
    temperature=0.1,
    base_history="others",
    base=PassSettings(
        epochs=8,
        batch_size=2048,
        uniform=8192,
        table_learning_rate=0.2,
        dense_learning_rate=1e-3,
    ),
    negatives=NegativeSettings(in_batch=False, per_positive=0, correction="none"),
    id_dropout=IdDropoutSettings(user=0.0, item=0.0),
)


class Row(NamedTuple):
    """One line of the table: what changes around the recipe, by part and setting."""

    name: str
    training: Mapping[str, Any] = {}
    model: Mapping[str, Any] = {}


MAIN: Final = "listwise, uniform"
ROWS: Final = (
    Row(MAIN),
    Row(
        "listwise, in batch and uniform, logQ",
        {"negatives": {"in_batch": True, "correction": "mixture"}},
    ),
    Row("listwise, in batch and uniform", {"negatives": {"in_batch": True}}),
    Row(
        "cosine contrastive",
        {"loss": "cosine_contrastive", "margin": 0.4, "negative_weight": 150.0},
    ),
    Row("pairwise logistic", {"loss": "pairwise_logistic"}),
    Row("pointwise", {"loss": "pointwise"}),
    Row("2,048 uniform", {"base": {"uniform": 2048}}),
    Row(
        "16,384 uniform, 16 epochs, rate 0.4, user IDs hidden on 0.3",
        {
            "base": {"uniform": 16384, "epochs": 16, "table_learning_rate": 0.4},
            "id_dropout": {"user": 0.3},
        },
    ),
    Row("history table of its own", {}, {"history_table": "own"}),
    Row("towers that begin at random", {}, {"linear_start": "random"}),
    Row("history none", {}, {"history_length": 0}),
    Row("temperature 0.07", {"temperature": 0.07}),
    Row("temperature 0.15", {"temperature": 0.15}),
    Row("temperature 0.2", {"temperature": 0.2}),
)
