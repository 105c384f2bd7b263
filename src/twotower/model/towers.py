"""The user tower, the item tower, and the pair that shares one vector space.

A tower is dense: it maps looked-up embeddings and numbers to a unit vector. The embedding tables
stand beside it, so that ID rows can be trained, published and served by themselves.
Legend: `B` inputs, `F` categorical fields, `M` numeric ones, `G` multi-valued ones of up to `L`
values, `D` vector dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from twotower.model.embedding_table import EmbeddingTable, Lookup
from twotower.model.settings import HistoryPooling, HistoryTable, ModelSettings
from twotower.model.tower import Tower

__all__ = ["FeatureShape", "Features", "History", "Tower", "TwoTower"]


class FeatureShape(NamedTuple):
    """How many fields of each kind a side has, and the rows of its feature table."""

    num_categorical: int
    num_numeric: int
    num_multi: int
    num_rows: int

    def input_dim(self, feature_dim: int) -> int:
        """Return the width of a side's features at the tower's first layer."""
        return (self.num_categorical + self.num_multi) * feature_dim + 2 * self.num_numeric


class Features(NamedTuple):
    """Encoded features of `B` users or items."""

    categorical: Tensor
    """`int64[B, F]`, rows of the side's feature table."""
    numeric: Tensor
    """`float32[B, 2 M]`, value and presence."""
    multi: Tensor
    """`int64[B, G, L]`, rows, -1 where there is none; each field has at least one."""


class History(NamedTuple):
    """Item rows of `B` users' recent positives."""

    rows: Tensor
    """`int64[H]`, all histories one after the other."""
    offsets: Tensor
    """`int64[B]`, the start of each history."""


class TwoTower:
    """Both towers with their embedding tables."""

    TABLES = ("user_id", "history", "user_feature", "item_id", "item_feature")

    def __init__(
        self,
        user_tower: Tower,
        item_tower: Tower,
        tables: dict[str, EmbeddingTable],
        history_pooling: HistoryPooling,
        history_table: HistoryTable = "own",
    ) -> None:
        self.history_pooling = history_pooling
        self.history_table = history_table
        self.user_tower = user_tower
        self.item_tower = item_tower
        self.tables = tables

    @classmethod
    def create(
        cls,
        settings: ModelSettings,
        *,
        user_shape: FeatureShape,
        item_shape: FeatureShape,
        num_user_rows: int,
        num_item_rows: int,
        generator: torch.Generator,
    ) -> TwoTower:
        """Return a pair of the given shapes with random parameters.

        Args:
            settings: dimensions.
            user_shape: of the users' features.
            item_shape: of the items' features.
            num_user_rows: rows of the user ID table, the unknown-ID row included.
            num_item_rows: the same for items; also that of the history table.
            generator: source of all randomness.
        """

        def table(num_rows: int, dim: int, std: float) -> EmbeddingTable:
            return EmbeddingTable.create(num_rows, dim, std=std, generator=generator)

        tables = {
            "user_id": table(num_user_rows, settings.id_dim, settings.id_init_std),
            "history": table(num_item_rows, settings.history_dim, settings.init_std),
            "user_feature": table(user_shape.num_rows, settings.feature_dim, settings.init_std),
            "item_id": table(num_item_rows, settings.id_dim, settings.init_std),
            "item_feature": table(item_shape.num_rows, settings.feature_dim, settings.init_std),
        }
        user_dim = settings.id_dim + user_shape.input_dim(settings.feature_dim)
        item_dim = settings.id_dim + item_shape.input_dim(settings.feature_dim)
        if settings.history_length:
            user_dim += settings.history_dim
        if settings.history_table == "item_id":
            tables["history"] = copy.deepcopy(tables["item_id"])

        def tower(input_dim: int, num_embeddings: int) -> Tower:
            return Tower(
                input_dim,
                settings.hidden,
                settings.vector_dim,
                skip=settings.skip,
                generator=generator,
                num_added=num_embeddings if settings.linear_start == "identity" else 0,
            )

        return cls(
            tower(user_dim, 1 + (settings.history_length > 0)), tower(item_dim, 1), tables,
            settings.history_pooling, settings.history_table,
        )  # fmt: skip

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """Return every weight that is no embedding row, by name."""
        towers = {"user_tower": self.user_tower, "item_tower": self.item_tower}
        return {
            f"{side}.{name}": parameter
            for side, tower in towers.items()
            for name, parameter in tower.named_parameters()
        }

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.tables["user_id"].weight.device

    def move_to(self, device: torch.device) -> None:
        """Move every parameter in place; whoever holds a dense one still does."""
        if self.device == device:
            return
        self.user_tower.to(device)
        self.item_tower.to(device)
        for table in self.tables.values():
            table.weight = table.weight.to(device)
            table.accumulator = table.accumulator.to(device)

    @contextmanager
    def one_item_table(self) -> Iterator[None]:
        """Pool from the items' own table inside, where the settings say so; outside from a copy.

        The copy is stored, published and frozen within the day like a table of its own.
        """
        if self.history_table == "item_id":
            self.tables["history"] = self.tables["item_id"]
        try:
            yield
        finally:
            if self.has_one_item_table:
                self.tables["history"] = copy.deepcopy(self.tables["item_id"])

    @property
    def has_one_item_table(self) -> bool:
        """Whether both sides move rows of the same table now, and must not do so at once."""
        return self.tables["history"] is self.tables["item_id"]

    def freeze_all_but(self, *tables: str) -> None:
        """Let nothing learn from now on but the rows of some embedding tables."""
        for parameter in self.dense_parameters().values():
            parameter.requires_grad_(False)
        for name, table in self.tables.items():
            table.is_frozen = name not in tables

    def encode_users(
        self, id_rows: Tensor, features: Features, history: History | None
    ) -> tuple[Tensor, list[Lookup]]:
        """Return user vectors `[B, D]` and the look-ups to be moved after `backward`.

        Args:
            id_rows: `int64[B]`, rows of the user ID table.
            features: of the users.
            history: recent positives, None when the model has no history.
        """
        ids = self.tables["user_id"].lookup(id_rows)
        rest, lookups = self.user_inputs(features, history)
        return self.user_tower(torch.cat([ids.embed(), *rest], 1)), [ids, *lookups]

    def user_inputs(
        self, features: Features, history: History | None
    ) -> tuple[list[Tensor], list[Lookup]]:
        """Return what the user tower sees behind the ID embedding, part by part, and look-ups."""
        side, lookups = self._embed(self.tables["user_feature"], features)
        if history is None:
            return side, lookups
        past = self.tables["history"].lookup(history.rows)
        return [self._pool(past, history), *side], [past, *lookups]

    def encode_items(self, id_rows: Tensor, features: Features) -> tuple[Tensor, list[Lookup]]:
        """Return item vectors `[B, D]` and the look-ups to be moved after `backward`.

        Args:
            id_rows: `int64[B]`, rows of the item ID table.
            features: of the items.
        """
        ids = self.tables["item_id"].lookup(id_rows)
        rest, lookups = self.item_inputs(features)
        return self.item_tower(torch.cat([ids.embed(), *rest], 1)), [ids, *lookups]

    def item_inputs(self, features: Features) -> tuple[list[Tensor], list[Lookup]]:
        """Return what the item tower sees behind the ID embedding, part by part, and look-ups."""
        return self._embed(self.tables["item_feature"], features)

    def _pool(self, past: Lookup, history: History) -> Tensor:
        mean = past.pool(history.offsets)
        if self.history_pooling == "mean":
            return mean
        end = history.offsets.new_full((1,), len(history.rows))
        lengths = torch.diff(history.offsets, append=end)
        return mean * lengths.sqrt()[:, None]

    @staticmethod
    def _embed(table: EmbeddingTable, features: Features) -> tuple[list[Tensor], list[Lookup]]:
        size, fields = features.categorical.shape
        num_multi = features.multi.shape[1]
        if fields + num_multi == 0:
            return [features.numeric], []
        singles = features.categorical.flatten()
        if not num_multi:
            looked_up = table.lookup(singles)
            return [looked_up.embed().reshape(size, -1), features.numeric], [looked_up]
        present, start = features.multi >= 0, len(singles)
        if features.multi.device.type == "cpu":
            looked_up = table.lookup(torch.cat([singles, features.multi[present]]))
            counts = present.sum(2).flatten()
            pooled = looked_up.pool(counts.cumsum(0) - counts, start=start)
        else:  # how many there are is not asked for, which would be to wait for the device
            every = features.multi.clamp_min(0).flatten()
            looked_up = table.lookup(torch.cat([singles, every]))
            pooled = _mean_of_present(looked_up.embed(start), present)
        parts = [looked_up.embed(0, start).reshape(size, -1), pooled.reshape(size, -1)]
        return [*parts, features.numeric], [looked_up]


def _mean_of_present(embedded: Tensor, present: Tensor) -> Tensor:
    """Return the mean over the values that are there, `[B, G, E]`, of `[B G L, E]`."""
    slots = embedded.reshape(*present.shape, -1) * present[..., None]
    return slots.sum(2) / present.sum(2, keepdim=True)
