"""A pass that was killed goes on where it was: state and cursor are saved in one atomic step.

What comes before the pass (new IDs, admission, frequencies) follows from the parent and the data
and is done again; the pass itself continues from its last save. Random numbers are seeded by step,
so the result equals that of a run that was never stopped, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint
from twotower.failpoints import failpoint
from twotower.training.step import save_adam

__all__ = ["Cursor", "PassKeeper", "pass_key"]


class Cursor(NamedTuple):
    """How far a pass has come."""

    epoch: int
    start: int
    """First place of the epoch's order that was not trained yet."""
    times_stepped: npt.NDArray[np.uint8]
    """`[n]`, how often each example went through a step in this epoch."""
    total_loss: float
    """Summed over the examples of this epoch."""


def pass_key(parent: Checkpoint, *parts: object) -> str:
    """Return a name for the one run that follows from a parent, a window and settings."""
    described = msgspec.json.encode([parent.meta, *parts])
    return hashlib.blake2b(described, digest_size=16).hexdigest()


class PassKeeper:
    """Saves a running pass to one file and finds it again; another run's file is ignored."""

    def __init__(self, path: Path, key: str, every_steps: int) -> None:
        self._path = path
        self._key = key
        self._every_steps = every_steps

    def load(self, state: Checkpoint) -> Cursor | None:
        """Put what was saved into `state` and return the cursor; None to start anew."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="np") as file:
                if (file.metadata() or {}).get("key") != self._key:
                    return None
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return None
        return _restore(state, arrays)

    def save(self, state: Checkpoint, adam: torch.optim.Adam, cursor: Cursor, step: int) -> None:
        """Save every `every_steps` steps: write aside, fsync, rename."""
        if step % self._every_steps:
            return
        from safetensors.numpy import save

        content = save(_collect(state, adam, cursor), metadata={"key": self._key})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".writing")
        failpoint("pass.before_write")
        with aside.open("wb") as file:
            file.write(content)
            failpoint("pass.before_fsync")
            file.flush()
            os.fsync(file.fileno())
        failpoint("pass.before_rename")
        aside.replace(self._path)
        failpoint("pass.after_rename")

    def discard(self) -> None:
        """Remove the file; called once the run's result is safe elsewhere."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".writing").unlink(missing_ok=True)


def _collect(
    state: Checkpoint, adam: torch.optim.Adam, cursor: Cursor
) -> dict[str, npt.NDArray[np.generic]]:
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "cursor.place": np.array([cursor.epoch, cursor.start], np.int64),
        "cursor.times_stepped": cursor.times_stepped,
        "cursor.total_loss": np.array([cursor.total_loss]),
    }
    for name, parameter in state.model.dense_parameters().items():
        arrays[f"dense.{name}"] = parameter.detach().numpy()
    for name, table in state.model.tables.items():
        arrays[f"table.{name}.weight"] = table.weight.numpy()
        arrays[f"table.{name}.accumulator"] = table.accumulator.numpy()
    for name, value in save_adam(state.model, adam).items():
        arrays[f"optimizer.{name}"] = value.numpy()
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def _restore(state: Checkpoint, arrays: dict[str, npt.NDArray[np.generic]]) -> Cursor:
    for name, parameter in state.model.dense_parameters().items():
        parameter.data = torch.from_numpy(arrays[f"dense.{name}"])
    for name, table in state.model.tables.items():
        table.weight = torch.from_numpy(arrays[f"table.{name}.weight"])
        table.accumulator = torch.from_numpy(arrays[f"table.{name}.accumulator"])
    prefix = "optimizer."
    state.optimizer = {
        name.removeprefix(prefix): torch.from_numpy(values)
        for name, values in arrays.items()
        if name.startswith(prefix)
    }
    epoch, start = (int(value) for value in arrays["cursor.place"])
    times_stepped = arrays["cursor.times_stepped"].astype(np.uint8)
    return Cursor(epoch, start, times_stepped, float(arrays["cursor.total_loss"].astype(float)[0]))
