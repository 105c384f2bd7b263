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


MAIN: Final = "listwise, 8,192 uniform"
_LONG: Final = {"base": {"uniform": 16384, "epochs": 16, "table_learning_rate": 0.4}}
_SHORT: Final = {"base": {"uniform": 2048, "epochs": 4}}


def _drawn(loss: str) -> dict[str, Any]:
    """Return another loss, which takes part of the negatives; all would cost ten times as much."""
    return {"loss": loss, "negatives": {"per_positive": 256}}


def _short(name: str, **training: Any) -> Row:
    """Return what changes around a quarter of the negatives and half of the epochs."""
    return Row(f"short: {name}", {**_SHORT, **training})


ROWS: Final = (
    Row(MAIN),
    Row(
        "listwise, 16,384 uniform, 16 epochs, rate 0.4, user IDs hidden on 0.3",
        {**_LONG, "id_dropout": {"user": 0.3}},
    ),
    _short("listwise, 2,048 uniform"),
    _short(
        "listwise, in batch and uniform, logQ",
        negatives={"in_batch": True, "correction": "mixture"},
    ),
    _short("listwise, in batch and uniform, no logQ", negatives={"in_batch": True}),
    _short(
        "listwise, in batch alone, logQ",
        base={"uniform": 0, "epochs": 4},
        negatives={"in_batch": True, "correction": "mixture"},
    ),
    _short("pairwise logistic, 256 a positive", **_drawn("pairwise_logistic")),
    _short("pointwise, 256 a positive", **_drawn("pointwise")),
    _short(
        "cosine contrastive, margin 0.7, weight 150, 256 a positive",
        **_drawn("cosine_contrastive"),
        margin=0.7,
        negative_weight=150.0,
    ),
    _short("temperature 0.07", temperature=0.07),
    _short("temperature 0.15", temperature=0.15),
    _short("temperature 0.2", temperature=0.2),
)
