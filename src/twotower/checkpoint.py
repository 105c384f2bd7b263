"""The training state of a lineage: written by training, read by publishing and the next night.

A folder of four files: `checkpoint.json` (what it is), `arrays.safetensors` (every tensor and
array, by name) and the two feature specs. See docs/file-formats.md.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from twotower.data.features import EncodedFeatures, FeatureSpec
from twotower.data.held_out import HeldOut
from twotower.data.ids import IdMap
from twotower.data.popularity import DecayedCounts
from twotower.data.user_state import UserState
from twotower.errors import CorruptArtifact
from twotower.model.embedding_table import EmbeddingTable
from twotower.model.frequency import FrequencyEstimator
from twotower.model.settings import ModelSettings
from twotower.model.towers import FeatureShape, TwoTower
from twotower.training.settings import TrainingSettings

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointMeta",
    "Trained",
    "Turnover",
    "Window",
    "feature_shape",
]

FORMAT_VERSION: Final = 4
_META, _ARRAYS = "checkpoint.json", "arrays.safetensors"
_USER_SPEC, _ITEM_SPEC = "user_features.json", "item_features.json"
Arrays = dict[str, npt.NDArray[np.generic]]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Which data a checkpoint was trained on, and up to which moment it knows anything."""

    from_day: str | None
    """First local day that this run trained; None for a base model."""
    through_day: str | None
    """Last local day that the lineage has trained; None before its first."""
    cut_ms: int
    """End of `through_day`: nothing later is in any part of the checkpoint."""
    skipped: tuple[str, ...] = ()
    """Days of the window that were left out by name; no later run trains them."""
    example_offset: int = 0
    """First example of the example log after `through_day`; 0 where nothing was streamed."""


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What this run trained, counted while it trained."""

    rows: int
    distinct_event_ids: int
    digest: str
    """Order-free digest of the event IDs that went through a step."""
    epochs: int
    steps: int
    loss: float
    """Mean over the last epoch."""
    seconds: float
    examples_per_s: float
    window_rows: int = 0
    """Positives of the window: `rows` is these less the withheld and with the carried ones."""
    withheld_rows: int = 0
    """Held out of the window, to be trained by the next full update."""
    carried_rows: int = 0
    """Held out by the parent, trained now."""
    drawn_negatives: tuple[int, ...] = ()
    """Negatives of users' lists that went through a step of the last epoch, a number a source."""


class Turnover(msgspec.Struct, frozen=True, kw_only=True):
    """How many IDs earned or lost an embedding row, or their user state, in this run."""

    admitted_users: int = 0
    admitted_items: int = 0
    evicted_users: int = 0
    evicted_items: int = 0
    forgotten_users: int = 0
    """Users whose clicks and seen items were dropped, unseen for long."""


class CheckpointMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is."""

    kind: Literal["base", "full"]
    window: Window
    trained: Trained
    model: ModelSettings
    training: TrainingSettings
    parent: str | None = None
    """Name of the full generation that the run started from."""
    turnover: Turnover = Turnover()
    negatives: dict[str, int] = {}
    """Hard and shown negatives: on lists, left out as known positives, and drawn."""
    format_version: int = FORMAT_VERSION


@dataclass
class Checkpoint:
    """Everything that a full update starts from and ends with."""

    meta: CheckpointMeta
    model: TwoTower
    optimizer: dict[str, torch.Tensor]
    """State of Adam over the dense parameters, by `<parameter>.<state>`."""
    users: IdMap
    items: IdMap
    user_features: FeatureSpec
    item_features: FeatureSpec
    user_profiles: EncodedFeatures
    """Over user positions, as of the cut."""
    item_profiles: EncodedFeatures
    """Over item positions, as of the cut."""
    user_state: UserState
    frequency: FrequencyEstimator
    popularity: DecayedCounts
    corpus: npt.NDArray[np.int64]
    """Item positions that are eligible for retrieval."""
    held_out: HeldOut = field(default_factory=HeldOut.none)
    """Positives of the window that the next full update trains."""
    last_event_day: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """`[N]`, for each user position the last day, since 1970, of the newest window with an event of
    that user; users whom no night has met yet are missing at the end."""

    def replace_meta(self, **changes: Any) -> Checkpoint:
        """Return the same state under a changed description."""
        return dataclasses.replace(self, meta=msgspec.structs.replace(self.meta, **changes))

    def save(self, folder: Path) -> None:
        """Write the four files into `folder`, which is made when missing.

        Every file is fsynced; making the folder appear as one is the caller's part.
        """
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        _write(
            folder / _ARRAYS, save({k: np.ascontiguousarray(v) for k, v in self.arrays().items()})
        )
        _write(folder / _USER_SPEC, self.user_features.to_json())
        _write(folder / _ITEM_SPEC, self.item_features.to_json())
        _write(folder / _META, msgspec.json.format(msgspec.json.encode(self.meta)))

    def arrays(self) -> Arrays:
        """Return every tensor and array by name: equal arrays mean an equal state."""
        arrays: Arrays = {}
        for name, parameter in self.model.dense_parameters().items():
            arrays[f"dense.{name}"] = parameter.detach().numpy()
        for name, table in self.model.tables.items():
            arrays[f"table.{name}.weight"] = table.weight.numpy()
            arrays[f"table.{name}.accumulator"] = table.accumulator.numpy()
        for name, state in self.optimizer.items():
            arrays[f"optimizer.{name}"] = state.numpy()
        parts: dict[str, Mapping[str, npt.NDArray[Any]]] = {
            "users": self.users.arrays(),
            "items": self.items.arrays(),
            "user_profiles": self.user_profiles._asdict(),
            "item_profiles": self.item_profiles._asdict(),
            "user_state": self.user_state.arrays(),
            "frequency": self.frequency.arrays(),
            "popularity": self.popularity.arrays(),
            "corpus": {"items": self.corpus},
            "held_out": self.held_out.arrays(),
            "user_activity": {"last_event_day": self.last_event_day},
        }
        for part, values in parts.items():
            arrays.update({f"{part}.{name}": value for name, value in values.items()})
        return arrays

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint; the caller has verified the checksums of its files.

        Raises:
            CorruptArtifact: a file is missing or is not what it should be.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            meta = _read_meta((folder / _META).read_bytes())
            arrays = load_file(folder / _ARRAYS)
            user_spec = FeatureSpec.from_json((folder / _USER_SPEC).read_bytes())
            item_spec = FeatureSpec.from_json((folder / _ITEM_SPEC).read_bytes())
            return _assemble(meta, arrays, user_spec, item_spec)
        except (OSError, msgspec.DecodeError, SafetensorError, KeyError, RuntimeError) as error:
            raise CorruptArtifact(
                f"{folder}: expected a checkpoint of format {FORMAT_VERSION}, found {error!r}; "
                "nothing was loaded"
            ) from error


def feature_shape(spec: FeatureSpec) -> FeatureShape:
    """Return the shape that a tower needs of a side's features."""
    return FeatureShape(spec.num_categorical, spec.num_numeric, spec.num_multi, spec.num_rows)


def _read_meta(raw: bytes) -> CheckpointMeta:
    version = msgspec.json.decode(raw).get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CorruptArtifact(
            f"checkpoint format is {version}, this twotower reads up to {FORMAT_VERSION}; "
            "upgrade twotower to load it"
        )
    return msgspec.json.decode(raw, type=CheckpointMeta)


def _assemble(
    meta: CheckpointMeta, arrays: Arrays, user_spec: FeatureSpec, item_spec: FeatureSpec
) -> Checkpoint:
    def part(prefix: str) -> Arrays:
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

    frequency = FrequencyEstimator(
        meta.training.frequency.learning_rate, meta.training.frequency.floor
    )
    frequency.load_arrays(part("frequency"))
    return Checkpoint(
        meta=meta,
        model=_assemble_model(meta.model, part("dense"), part("table"), user_spec, item_spec),
        optimizer={k: torch.from_numpy(v) for k, v in part("optimizer").items()},
        users=IdMap.from_arrays(part("users")),
        items=IdMap.from_arrays(part("items")),
        user_features=user_spec,
        item_features=item_spec,
        user_profiles=EncodedFeatures(**part("user_profiles")),  # type: ignore[arg-type]
        item_profiles=EncodedFeatures(**part("item_profiles")),  # type: ignore[arg-type]
        user_state=UserState.from_arrays(part("user_state")),
        frequency=frequency,
        popularity=DecayedCounts.from_arrays(part("popularity")),
        corpus=arrays["corpus.items"].astype(np.int64),
        held_out=HeldOut.from_arrays(part("held_out")),
        last_event_day=_last_event_day(arrays),
    )


def _last_event_day(arrays: Arrays) -> npt.NDArray[np.int64]:
    """Return what formats before 3 did not know as knowing of nobody."""
    known = arrays.get("user_activity.last_event_day")
    return np.zeros(0, np.int64) if known is None else known.astype(np.int64)


def _assemble_model(
    settings: ModelSettings,
    dense: Arrays,
    tables: Arrays,
    user_spec: FeatureSpec,
    item_spec: FeatureSpec,
) -> TwoTower:
    model = TwoTower.create(
        settings,
        user_shape=feature_shape(user_spec)._replace(num_rows=0),
        item_shape=feature_shape(item_spec)._replace(num_rows=0),
        num_user_rows=0,
        num_item_rows=0,
        generator=torch.Generator(),
    )
    for name, parameter in model.dense_parameters().items():
        parameter.data = torch.from_numpy(dense[name])
    for name in TwoTower.TABLES:
        weight, accumulator = tables[f"{name}.weight"], tables[f"{name}.accumulator"]
        model.tables[name] = EmbeddingTable(torch.from_numpy(weight), torch.from_numpy(accumulator))
    return model


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
