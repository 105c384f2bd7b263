"""The read side of the example log: open, read from an offset, follow, forget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from twotower.data.events import IdKinds
from twotower.data.example_log.columns import (
    JoinedExamples,
    column_kinds,
    concatenate_examples,
    from_columns,
    no_examples,
)
from twotower.data.example_log.manifest import (
    ExampleManifest,
    ShardSpan,
    examples_path,
    read_manifest,
)
from twotower.errors import CorruptArtifact, LineageError, NotReady

__all__ = ["ExampleLog"]

_POLL_S: Final = 0.02


class ExampleLog:
    """A view of the examples up to the commit that was the newest when it was opened or refreshed.

    Safe beside a join that goes on. One object is for one thread; it keeps the shard that it read
    last, so that small reads in order decode every shard once.
    """

    def __init__(self, folder: Path, manifest: ExampleManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._kept: tuple[str, JoinedExamples] | None = None

    @classmethod
    def open(cls, data_path: Path) -> ExampleLog:
        """Open the example log of a project's data folder.

        Raises:
            NotReady: nothing was joined yet.
            CorruptArtifact: the manifest cannot be understood.
        """
        folder = examples_path(data_path)
        return cls(folder, _manifest(folder))

    def refresh(self) -> None:
        """Move to the newest commit."""
        self.manifest = _manifest(self.folder)

    @property
    def begin(self) -> int:
        """Oldest offset that can be read."""
        return self.manifest.begin

    @property
    def end(self) -> int:
        """Offset after the last example."""
        return self.manifest.end

    @property
    def event_offset(self) -> int:
        """The event log was joined up to here."""
        return self.manifest.event_offset

    @property
    def watermark_ms(self) -> int | None:
        """No earlier event is expected; None before the first."""
        return self.manifest.watermark_ms

    @property
    def cuts(self) -> Mapping[str, int]:
        """Local day -> offset of the first example that was emitted after the day had ended."""
        return self.manifest.cuts

    @property
    def id_kinds(self) -> IdKinds:
        """What the IDs are."""
        return self.manifest.id_kinds

    def read(self, start: int, limit: int) -> JoinedExamples:
        """Return `limit` examples from offset `start` on, or those that there are.

        Raises:
            LineageError: `start` was forgotten, or lies beyond the end.
            CorruptArtifact: a shard was altered; file and byte are named.
        """
        manifest = self.manifest
        if not manifest.begin <= start <= manifest.end:
            raise LineageError(
                f"expected an example offset from {manifest.begin} to {manifest.end}, found "
                f"{start}: {'it was forgotten' if start < manifest.begin else 'it is not there'}; "
                "the example log is unchanged"
            )
        end = min(start + limit, manifest.end)
        parts = [
            self._shard(shard).take(slice(max(start - shard.start, 0), end - shard.start))
            for shard in manifest.shards
            if shard.start < end and start < shard.end
        ]
        return concatenate_examples(parts) if parts else no_examples(self.id_kinds)

    def _shard(self, shard: ShardSpan) -> JoinedExamples:
        """Return the examples of one shard. The newest grows, under another name each time."""
        if self._kept is not None and self._kept[0] == shard.name:
            return self._kept[1]
        examples = self._decode_grown(shard).take(slice(0, shard.end - shard.start))
        self._kept = (shard.name, examples)
        return examples

    def _decode_grown(self, shard: ShardSpan) -> JoinedExamples:
        """Return the examples of a shard, and those that came to it since the manifest was read."""
        try:
            return self._decode(shard)
        except CorruptArtifact:
            newer = read_manifest(self.folder)
            grown = [found for found in newer.shards if found.start == shard.start] if newer else []
            if not grown or grown[0].name == shard.name:
                raise
            return self._decode_grown(grown[0])

    def _decode(self, shard: ShardSpan) -> JoinedExamples:
        from twotower.data.tfrecord import ShardEntry, read_shard

        rows = shard.end - shard.start
        entry = ShardEntry(name=shard.name, rows=rows, bytes=shard.bytes, xxh3=shard.xxh3)
        kinds = column_kinds(self.id_kinds)
        return from_columns(
            shard.start, read_shard(self.folder / shard.name, kinds, entry=entry).columns
        )

    def wait(
        self, start: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> bool:
        """Return True as soon as an example at `start` is committed, refreshed to it; False when
        there is none after `timeout_s`."""
        give_up_at_s = clock() + timeout_s
        self.refresh()
        while self.end <= start:
            remaining_s = give_up_at_s - clock()
            if remaining_s <= 0:
                return False
            time.sleep(min(_POLL_S, remaining_s))
            self.refresh()
        return True


def _manifest(folder: Path) -> ExampleManifest:
    manifest = read_manifest(folder)
    if manifest is None:
        raise NotReady(f"no example was joined in {folder}; run: twotower join")
    return manifest
