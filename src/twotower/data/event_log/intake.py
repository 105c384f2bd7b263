"""One door for events, whoever sends them: decode, store, keep what was refused, answer by row.

When an answer is given, every event of it is stored durably, and so is every refusal.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from twotower.data.event_log import EventLog, EventLogSettings, Fate, open_event_log
from twotower.data.event_log.dead_letters import DeadLetters
from twotower.data.event_log.receipt import Receipt, RejectedRow
from twotower.data.event_log.rows import Refusal, Rows, decode_rows
from twotower.data.events import MAX_NAMES, Event, IdKinds

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Intake"]

_REASONS: Final = {
    Fate.CONFLICT: ("conflict", "another event is stored under this event_id; it stays"),
    Fate.TOO_MANY_NAMES: (
        "too_many_names",
        f"the log knows {MAX_NAMES} outcomes or stages already, and this one is new",
    ),
}


class Intake:
    """The log and the dead letters of a project, open for events. Safe for threads."""

    def __init__(
        self, data_path: Path, settings: EventLogSettings, id_kinds: IdKinds | None = None
    ) -> None:
        """Open both.

        Raises:
            DataError: the log holds IDs of another kind than `id_kinds`.
            CorruptArtifact, NotReady: one of them cannot be opened.
        """
        self.log: EventLog = open_event_log(data_path, settings, id_kinds)
        self._letters = DeadLetters(data_path, settings)
        self._row_limit_bytes = settings.row_limit_bytes

    def close(self) -> None:
        """Close both."""
        self.log.close()
        self._letters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def decode(self, body: bytes) -> Rows:
        """Return the rows of a JSON array or of NDJSON, with IDs of the log's kinds.

        Raises:
            ValueError: the body has no rows.
        """
        return decode_rows(body, self.log.id_kinds, self._row_limit_bytes)

    def take(self, body: bytes, received_ms: int) -> Receipt:
        """Store the events of `body`, a JSON array or NDJSON.

        Raises:
            ValueError: the body has no rows; nothing was stored.
            NotReady: the disk is full or fails; nothing was acknowledged, sending again is right.
        """
        return self.take_rows(self.decode(body), received_ms)

    def take_rows(self, rows: Rows, received_ms: int) -> Receipt:
        """Store rows that are decoded; the same answer."""
        appended = self.log.append(rows.events, received_ms)
        duplicates: list[int] = []
        refused = list(rows.refused)
        if set(appended.fates) - {Fate.STORED}:
            for row, event, fate in zip(rows.places, rows.events, appended.fates, strict=True):
                if fate is Fate.DUPLICATE:
                    duplicates.append(row)
                elif fate in _REASONS:
                    refused.append(_refusal(row, event, fate))
        self._keep(refused, len(duplicates), received_ms)
        return Receipt(
            accepted=len(rows.events) - len(refused) + len(rows.refused),
            duplicates=duplicates,
            rejected=[
                RejectedRow(row=r.row, code=r.code, reason=r.reason) for r in sorted(refused)
            ],
            end_offset=appended.end,
        )

    def _keep(self, refused: list[Refusal], num_duplicates: int, received_ms: int) -> None:
        counts = Counter(refusal.code for refusal in refused)
        if num_duplicates:
            counts["duplicate"] = num_duplicates
        if counts:
            letters = [(refusal.code, refusal.reason, refusal.raw) for refusal in refused]
            self._letters.add(letters, counts, received_ms)


def _refusal(row: int, event: Event, fate: Fate) -> Refusal:
    code, reason = _REASONS[fate]
    return Refusal(row, code, reason, msgspec.json.encode(event))
