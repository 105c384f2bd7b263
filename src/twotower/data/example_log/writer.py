"""The write side of the example log: one commit a batch, whole or not at all.

A shard holds the examples of a fixed span of offsets, so that the files follow from the examples
alone, however the join was cut into batches, killed and begun again. The newest one is open: every
commit writes it anew, longer and under another name, and the manifest names the one that counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import xxhash

from twotower.data.events import IdKinds
from twotower.data.example_log.columns import (
    JoinedExamples,
    concatenate_examples,
    no_examples,
    to_columns,
)
from twotower.data.example_log.manifest import (
    MANIFEST,
    ExampleManifest,
    ShardSpan,
    StateFile,
    examples_path,
    read_manifest,
    write_manifest,
)
from twotower.data.example_log.reader import ExampleLog
from twotower.durable import Step, exclusive, read_regular, replace_file
from twotower.errors import CorruptArtifact, LineageError
from twotower.failpoints import failpoint

__all__ = ["Commit", "ExampleWriter", "forget_examples", "open_writer"]

_PARTITION: Final = 0
_MAX_STATE_BYTES: Final = 1 << 34
_WRITER_LOCK: Final = ".writer.lock"
_COMMIT_LOCK: Final = ".commit.lock"
_LOCK_TIMEOUT_S: Final = 30.0


class Commit(NamedTuple):
    """What one batch changes."""

    examples: JoinedExamples
    """Those that follow the log's end."""
    event_offset: int
    state: bytes
    progress: Mapping[str, object]
    """Other fields of the manifest, as they are after the batch."""


class ExampleWriter:
    """Appends to one example log; made by `open_writer`, one at a time."""

    def __init__(self, folder: Path, shard_examples: int, id_kinds: IdKinds) -> None:
        self.folder = folder
        self._shard_examples = shard_examples
        self.manifest = read_manifest(folder) or ExampleManifest(
            user_id_kind=id_kinds.user, item_id_kind=id_kinds.item
        )
        if self.manifest.id_kinds != id_kinds:
            raise LineageError(
                f"expected an event log with IDs as in {folder}, {self.manifest.id_kinds}, found "
                f"{id_kinds}; nothing was joined; the two belong to different projects"
            )
        self._remove_unnamed()
        self._open_shard = self._read_open_shard()

    def read_state(self) -> bytes | None:
        """Return the state of the last commit, None before the first.

        Raises:
            CorruptArtifact: the file was altered.
        """
        entry = self.manifest.state
        if entry is None:
            return None
        path = self.folder / entry.name
        content = read_regular(path, _MAX_STATE_BYTES)
        if (len(content), xxhash.xxh3_128_hexdigest(content)) != (entry.bytes, entry.xxh3):
            raise CorruptArtifact(
                f"expected {entry.bytes} bytes of checksum {entry.xxh3[:12]}… in {path}, found "
                "others; nothing was joined; restore the folder from a backup, or remove it and "
                "join the event log from its beginning"
            )
        return content

    def commit(self, commit: Commit) -> None:
        """Make a batch true: shards, then the state, then the manifest that names them.

        Raises:
            LineageError: somebody else has written to the log.
        """
        with exclusive(self.folder / _COMMIT_LOCK, "writing", _LOCK_TIMEOUT_S):
            self._check_alone()
            sealed = [s for s in self.manifest.shards if s.end <= self._open_start()]
            shards = self.manifest.shards
            if len(commit.examples.offset):
                shards = [*sealed, *self._write_shards(commit.examples)]
            state = self._write_state(commit.state)
            manifest = msgspec.structs.replace(
                self.manifest,
                event_offset=commit.event_offset,
                end=self.manifest.end + len(commit.examples.offset),
                shards=shards,
                state=state,
                **commit.progress,
            )
            write_manifest(self.folder, manifest, _at("examples.manifest"))
            before, self.manifest = self.manifest, manifest
            self._remove_replaced(before)

    def _check_alone(self) -> None:
        """Take over what `forget_examples` did since; refuse anything else."""
        found = read_manifest(self.folder)
        if found is None:
            return
        if (found.event_offset, found.end) != (self.manifest.event_offset, self.manifest.end):
            raise LineageError(
                f"expected the example log in {self.folder} to end at {self.manifest.end}, as this "
                f"join left it, found {found.end}: another one writes to it; nothing of this batch "
                "was written; end one of them"
            )
        self.manifest = found

    def _open_start(self) -> int:
        return self.manifest.end - len(self._open_shard.offset)

    def _read_open_shard(self) -> JoinedExamples:
        """Return the examples of the newest shard if it is not full."""
        shards = self.manifest.shards
        if not shards or shards[-1].end - shards[-1].start >= self._shard_examples:
            return no_examples(self.manifest.id_kinds)
        start = shards[-1].start
        return ExampleLog(self.folder, self.manifest).read(start, self._shard_examples)

    def _write_shards(self, examples: JoinedExamples) -> list[ShardSpan]:
        """Write the open shard with the examples behind it, as many shards as it takes."""
        if len(self._open_shard.offset):
            examples = concatenate_examples([self._open_shard, examples])
        spans, size = [], self._shard_examples
        for start in range(0, len(examples.offset), size):
            self._open_shard = examples.take(slice(start, start + size))
            spans.append(self._write_shard(self._open_shard))
        if len(self._open_shard.offset) == size:
            self._open_shard = no_examples(self.manifest.id_kinds)
        return spans

    def _write_shard(self, examples: JoinedExamples) -> ShardSpan:
        from twotower.data.tfrecord import write_shard

        start, end = int(examples.offset[0]), int(examples.offset[-1]) + 1
        name = f"examples-{_PARTITION:03d}-{start:012d}-{end:012d}.tfrecord"
        entry = write_shard(self.folder / name, to_columns(examples), _at("examples.shard"))
        return ShardSpan(name=name, start=start, end=end, bytes=entry.bytes, xxh3=entry.xxh3)

    def _write_state(self, content: bytes) -> StateFile:
        """Write the state under a name that follows from it, so never over one that counts."""
        digest = xxhash.xxh3_128_hexdigest(content)
        entry = StateFile(name=f"state-{digest}.msgpack", bytes=len(content), xxh3=digest)
        if entry != self.manifest.state:
            replace_file(self.folder / entry.name, content, _at("examples.state"))
        return entry

    def _remove_replaced(self, before: ExampleManifest) -> None:
        for name in sorted(_names(before) - _names(self.manifest)):
            (self.folder / name).unlink(missing_ok=True)
            failpoint("examples.removed")

    def _remove_unnamed(self) -> None:
        """Remove what a crash left behind."""
        named = _names(self.manifest) | {MANIFEST}
        for path in self.folder.iterdir():
            is_ours = path.name.startswith(("examples-", "state-", ".examples-", ".state-"))
            if path.name not in named and is_ours:
                path.unlink()


@contextlib.contextmanager
def open_writer(data_path: Path, shard_examples: int, id_kinds: IdKinds) -> Iterator[ExampleWriter]:
    """Give the writer of a project's example log, making the log where it is missing.

    Raises:
        NotReady: another process joins this project.
        LineageError: the log holds IDs of another kind.
        CorruptArtifact: the manifest or the newest shard cannot be understood.
    """
    folder = examples_path(data_path)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / _WRITER_LOCK, "joining events", timeout_s=0.0):
        yield ExampleWriter(folder, shard_examples, id_kinds)


def forget_examples(data_path: Path, before: int) -> int:
    """Remove whole shards below the offset `before`; the newest one stays.

    Whether somebody still needs them is for the caller to know. Safe beside a join.

    Returns:
        The oldest offset that can still be read.

    Raises:
        NotReady: nothing was joined yet.
    """
    log = ExampleLog.open(data_path)
    with exclusive(log.folder / _COMMIT_LOCK, "writing", _LOCK_TIMEOUT_S):
        log.refresh()
        shards = log.manifest.shards
        kept = [shard for shard in shards[:-1] if shard.end > before] + shards[-1:]
        begin = kept[0].start if kept else log.begin
        manifest = msgspec.structs.replace(log.manifest, begin=begin, shards=kept)
        write_manifest(log.folder, manifest, _at("examples.forget"))
        for name in sorted(_names(log.manifest) - _names(manifest)):
            (log.folder / name).unlink(missing_ok=True)
    return begin


def _names(manifest: ExampleManifest) -> set[str]:
    state = {manifest.state.name} if manifest.state else set()
    return {shard.name for shard in manifest.shards} | state


def _at(part: str) -> Step:
    """Return fail-points for the steps of one kind of file, named `part.step`."""
    return lambda step: failpoint(f"{part}.{step}")
