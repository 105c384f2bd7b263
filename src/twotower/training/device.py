"""Where a pass does its arithmetic, and how batches get there.

A model lives on the device for the length of a pass: what is stored, exported and published is
read from the CPU's memory as ever. Batches are made on the CPU, so every device trains on the same
draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.model.towers import TwoTower
from twotower.training.settings import DeviceName

__all__ = ["LossSum", "made_ahead", "moved", "moved_for", "training_device"]

MAKERS: Final = 3
"""Threads that make batches while the device is at work."""
_AHEAD: Final = 2 * MAKERS
_READ_EVERY: Final = 50
"""Steps between two looks at the loss of another device."""

T = TypeVar("T")
S = TypeVar("S")


def training_device(setting: DeviceName) -> torch.device:
    """Return the device that a setting names; `auto` is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if setting == "cuda" and not has_cuda:
        raise ConfigError(
            'expected a device for training.device = "cuda", found none that this PyTorch '
            f"({torch.__version__}) can use; nothing was trained: install a build for CUDA and its "
            'driver, or set "auto" or "cpu"'
        )
    if not has_cuda or setting == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def moved_for(model: TwoTower, device: torch.device) -> Iterator[None]:
    """Keep the model's parameters on the device, and bring them back to the CPU at the end."""
    model.move_to(device)
    try:
        yield
    finally:
        model.move_to(torch.device("cpu"))


def moved(value: T, device: torch.device) -> T:
    """Return `value` with every tensor in its (named) tuples on the device.

    The copies to CUDA start from pinned memory and wait for nothing.
    """
    return value if device.type == "cpu" else cast(T, _moved(value, device))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        is_pinned = device.type == "cuda" and value.numel() > 0
        source = value.pin_memory() if is_pinned else value
        return source.to(device, non_blocking=True)
    if isinstance(value, tuple):
        parts = [_moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


class LossSum:
    """The losses of a pass, summed over examples where they are and read rarely: a read waits."""

    def __init__(self, total: float, device: torch.device) -> None:
        self._total = total
        self._on_device: Tensor | None = None
        if device.type != "cpu":
            self._on_device = torch.tensor(total, dtype=torch.float64, device=device)
        self._steps = 0
        self._newest = float("nan")

    def add(self, loss: Tensor, num_examples: int) -> float:
        """Add a step's mean loss; return one that was read lately, on the CPU this one."""
        if self._on_device is None:
            self._newest = loss.item()
            self._total += self._newest * num_examples
            return self._newest
        self._on_device.add_(loss, alpha=num_examples)
        if self._steps % _READ_EVERY == 0:
            self._newest = loss.item()
        self._steps += 1
        return self._newest

    def total(self) -> float:
        """Return the sum over all examples so far."""
        return self._total if self._on_device is None else self._on_device.item()


def made_ahead(make: Callable[[S], T], sources: Iterable[S], device: torch.device) -> Iterator[T]:
    """Yield what `make` returns for each source, in order.

    On the CPU each is made when it is asked for: arithmetic needs the cores then. Beside another
    device a few threads make the next ones meanwhile, so `make` must draw from nothing shared.
    """
    if device.type == "cpu":
        yield from map(make, sources)
        return
    with ThreadPoolExecutor(MAKERS, "batches") as executor:
        begun: list[Future[T]] = []
        for source in sources:
            begun.append(executor.submit(make, source))
            if len(begun) > _AHEAD:
                yield begun.pop(0).result()
        while begun:
            yield begun.pop(0).result()
