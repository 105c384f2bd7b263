"""Settings of the event log."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["EventLogSettings"]

Positive = Annotated[int, msgspec.Meta(ge=1)]


class EventLogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How events are kept."""

    rejected_rows: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    """How many rejected rows are kept for `twotower events rejected`, the newest."""
    row_limit_bytes: Positive = 65_536
    """A longer row is rejected, whatever it says."""
    lock_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    """How long an append waits for another process that is writing."""
