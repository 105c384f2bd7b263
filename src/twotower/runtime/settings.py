"""Settings of `twotower up`: which processes it runs, when the night is, what stays afterwards."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["ProcessName", "RuntimeSettings"]

ProcessName = Literal["serve", "collect", "join", "increment", "full"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=0)]
TimeOfDay = Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


class RuntimeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What runs under `twotower up`, and how patiently."""

    processes: tuple[ProcessName, ...] = ("serve", "collect", "join", "increment", "full")
    """What runs; `full` is the nightly update. A part that runs elsewhere is left out here."""
    night_at: TimeOfDay = "03:00"
    """Local time, in `time_zone`, from which the day before may be trained."""
    night_attempts: Positive = 3
    """How often a night is tried that fails; one that a gate refuses is not tried again."""
    night_retry_s: Seconds = 300.0
    """Pause before the next attempt."""
    keep_generations: Count = 7
    """After each night: newest generations that stay besides those that are needed."""
    keep_event_days: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """After each night: days of events and joined examples that stay besides what is needed; an
    event that is sent again within them counts once."""
    first_pause_s: Seconds = 0.5
    """Pause before a process that died is started again; doubled each time it dies again."""
    max_pause_s: Seconds = 30.0
    """The longest such pause."""
    steady_s: Seconds = 60.0
    """A process that ran so long begins again with the first pause."""
    stop_timeout_s: Seconds = 60.0
    """After SIGTERM: how long each process may take to finish before it is killed."""

    def __post_init__(self) -> None:
        """Refuse a process that is named twice."""
        if len(set(self.processes)) != len(self.processes):
            raise ValueError(f"expected each process once, found {', '.join(self.processes)}")
