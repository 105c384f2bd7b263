"""A pass that was killed goes on where it was: state and cursor are saved in one atomic step.

What comes before the pass (new IDs, admission, frequencies) follows from the parent and the data
and is done again; the pass itself continues from its last save. Random numbers are seeded by step,
so the result equals that of a run that was never stopped, bit for bit.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint
from twotower.failpoints import failpoint
from twotower.training.step import save_adam

__all__ = ["Cursor", "PassKeeper", "pass_key", "run_key"]

_LOGGER: Final = logging.getLogger("twotower")
_CHECK_BYTES: Final = 32


class Cursor(NamedTuple):
    """How far a pass has come."""

    epoch: int
    start: int
    """First place of the epoch's order that was not trained yet."""
    times_stepped: npt.NDArray[np.uint8]
    """`[n]`, how often each example went through a step in this epoch."""
    total_loss: float
    """Summed over the examples of this epoch."""
    drawn_negatives: npt.NDArray[np.int64]
    """How many negatives of users' lists went through a step in this epoch, a number a source."""


def pass_key(parent: Checkpoint, *parts: object) -> str:
    """Return a name for the one run that follows from a parent, a window and settings."""
    trained = msgspec.structs.replace(parent.meta.trained, seconds=0.0, examples_per_s=0.0)
    return run_key(msgspec.structs.replace(parent.meta, trained=trained), *parts)


def run_key(*parts: object) -> str:
    """Return a name for the one run that follows from `parts`, 32 hexadecimal digits."""
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()


class PassKeeper:
    """Saves a running pass to one file and finds it again.

    The file begins with a BLAKE2b-256 of the rest, keyed by the run: another run's file, a torn
    one and one with a flipped bit are all ignored, before any of it is understood.
    """

    def __init__(self, path: Path, key: str, every_steps: int) -> None:
        self._path = path
        self._key = key
        self._every_steps = every_steps

    def load(self, state: Checkpoint) -> Cursor | None:
        """Put what was saved into `state` and return the cursor; None to start anew."""
        from safetensors.numpy import load

        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        saved = memoryview(content)[_CHECK_BYTES:]
        if content[:_CHECK_BYTES] != self._check(saved):
            _LOGGER.warning(
                "ignored path=%r reason='damaged, or of another run'; the pass starts anew",
                str(self._path),
            )
            return None
        cursor = _restore(state, load(bytes(saved)))
        _LOGGER.info("resumed path=%r epoch=%d place=%d", str(self._path), *cursor[:2])
        return cursor

    def is_due(self, step: int) -> bool:
        """Return whether `save` saves after this step."""
        return step % self._every_steps == 0

    def save(self, state: Checkpoint, adam: torch.optim.Adam, cursor: Cursor, step: int) -> None:
        """Save every `every_steps` steps: write aside, fsync, rename.

        Where the disk is full the save before it stays, and the night ends: going on unsaved
        would only meet the same disk when it publishes.
        """
        if not self.is_due(step):
            return
        from safetensors.numpy import save

        content = save(_collect(state, adam, cursor))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".writing")
        try:
            self._write(aside, content)
            aside.replace(self._path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        failpoint("pass.after_rename")

    def _write(self, aside: Path, content: bytes) -> None:
        failpoint("pass.before_write")
        with aside.open("wb") as file:
            file.write(self._check(content))
            file.write(content)
            failpoint("pass.before_fsync")
            file.flush()
            os.fsync(file.fileno())
        failpoint("pass.before_rename")

    def _check(self, saved: bytes | memoryview) -> bytes:
        return hashlib.blake2b(
            saved, digest_size=_CHECK_BYTES, key=bytes.fromhex(self._key)
        ).digest()

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
        "cursor.drawn_negatives": cursor.drawn_negatives,
    }
    for name, parameter in state.model.dense_parameters().items():
        arrays[f"dense.{name}"] = parameter.detach().cpu().numpy()
    for name, table in state.model.tables.items():
        arrays[f"table.{name}.weight"] = table.weight.cpu().numpy()
        arrays[f"table.{name}.accumulator"] = table.accumulator.cpu().numpy()
    for name, value in save_adam(state.model, adam).items():
        arrays[f"optimizer.{name}"] = value.numpy()
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def _restore(state: Checkpoint, arrays: dict[str, npt.NDArray[np.generic]]) -> Cursor:
    tensors = {name: torch.from_numpy(values.copy()) for name, values in arrays.items()}
    for name, parameter in state.model.dense_parameters().items():
        parameter.data = tensors[f"dense.{name}"]
    for name, table in state.model.tables.items():
        table.weight = tensors[f"table.{name}.weight"]
        table.accumulator = tensors[f"table.{name}.accumulator"]
    prefix = "optimizer."
    state.optimizer = {
        name.removeprefix(prefix): values
        for name, values in tensors.items()
        if name.startswith(prefix)
    }
    epoch, start = (int(value) for value in arrays["cursor.place"])
    times_stepped = arrays["cursor.times_stepped"].astype(np.uint8)
    total_loss = float(arrays["cursor.total_loss"].astype(float)[0])
    drawn = arrays["cursor.drawn_negatives"].astype(np.int64)
    return Cursor(epoch, start, times_stepped, total_loss, drawn)
