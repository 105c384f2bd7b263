"""The example log's read side: offsets, slices over shards, growth under a reader, damage."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from twotower.data.example_log import (
    CANDIDATE,
    IMPRESSION,
    LATE_POSITIVE,
    ExampleLog,
    ExampleManifest,
    JoinedExamples,
    ShardSpan,
)
from twotower.data.example_log.columns import to_columns
from twotower.data.example_log.manifest import examples_path, write_manifest
from twotower.data.tfrecord import write_shard
from twotower.errors import CorruptArtifact, LineageError, NotReady


def make_examples(start: int, end: int, *, text: bool = False) -> JoinedExamples:
    """Examples whose every value follows from the offset."""
    offset = np.arange(start, end, dtype=np.int64)
    kind = (offset % 3).astype(np.uint8)
    user = np.array([f"u-{n}" for n in offset], "S") if text else offset - 5
    return JoinedExamples(
        offset=offset,
        event_key=(offset.astype(np.uint64) + np.uint64(2**64 - 4)),
        user_id=user,
        item_id=offset + 2**62,
        event_time_ms=1_700_000_000_000 + offset,
        kind=kind,
        is_positive=(kind == LATE_POSITIVE) | ((kind == IMPRESSION) & (offset % 2 == 0)),
        weight=np.where(kind == LATE_POSITIVE, 0.5, 1).astype(np.float32),
        stage=np.where(kind == CANDIDATE, b"ranking", b"").astype("S7"),
    )


def write_log(
    data_path: Path, limits: list[int], *, begin: int = 0, text: bool = False
) -> ExampleManifest:
    """A log whose shards end at the given offsets."""
    folder = examples_path(data_path)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start, end in zip([begin, *limits], limits, strict=False):
        name = f"examples-{start}-{end}.tfrecord"
        entry = write_shard(folder / name, to_columns(make_examples(start, end, text=text)))
        shards.append(
            ShardSpan(name=name, start=start, end=end, bytes=entry.bytes, xxh3=entry.xxh3)
        )
    manifest = ExampleManifest(
        user_id_kind="str" if text else "int",
        item_id_kind="int",
        begin=begin,
        end=limits[-1] if limits else begin,
        shards=shards,
    )
    write_manifest(folder, manifest)
    return manifest


def assert_same(found: JoinedExamples, expected: JoinedExamples) -> None:
    """Every column equals, whatever the width of its texts."""
    for name, a, b in zip(
        found._fields, map(np.asarray, found), map(np.asarray, expected), strict=True
    ):
        assert a.dtype.kind == b.dtype.kind, name
        assert a.tolist() == b.tolist(), name


def test_nothing_was_joined(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="twotower join"):
        ExampleLog.open(tmp_path)


@pytest.mark.parametrize("text", [False, True])
def test_every_slice_comes_back(tmp_path: Path, text: bool) -> None:
    write_log(tmp_path, [7, 8, 30], begin=2, text=text)
    log = ExampleLog.open(tmp_path)
    assert (log.begin, log.end) == (2, 30)
    for start in range(2, 31):
        for limit in (0, 1, 3, 100):
            end = min(start + limit, 30)
            assert_same(log.read(start, limit), make_examples(start, end, text=text))


def test_an_offset_outside_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path, [5], begin=2)
    log = ExampleLog.open(tmp_path)
    with pytest.raises(LineageError, match="from 2 to 5, found 1: it was forgotten"):
        log.read(1, 1)
    with pytest.raises(LineageError, match="found 6: it is not there"):
        log.read(6, 1)


def test_a_reader_stays_where_it_is_until_it_refreshes(tmp_path: Path) -> None:
    write_log(tmp_path, [5, 8])
    log = ExampleLog.open(tmp_path)
    write_log(tmp_path, [5, 12])
    (examples_path(tmp_path) / "examples-5-8.tfrecord").unlink()
    assert log.end == 8
    assert_same(log.read(3, 100), make_examples(3, 8))
    assert log.wait(10, timeout_s=0)
    assert_same(log.read(3, 100), make_examples(3, 12))


def test_waiting_ends(tmp_path: Path) -> None:
    write_log(tmp_path, [5])
    log = ExampleLog.open(tmp_path)
    times = iter([0.0, 1.0, 2.0])
    assert not log.wait(5, timeout_s=1.5, clock=lambda: next(times))
    assert log.wait(4, timeout_s=0)


def test_damage_is_found(tmp_path: Path) -> None:
    manifest = write_log(tmp_path, [5, 8])
    shard = examples_path(tmp_path) / manifest.shards[1].name
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    log = ExampleLog.open(tmp_path)
    assert_same(log.read(0, 5), make_examples(0, 5))
    with pytest.raises(CorruptArtifact, match=r"examples-5-8\.tfrecord"):
        log.read(4, 2)


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    manifest = write_log(tmp_path, [5, 8])
    folder = examples_path(tmp_path)
    for wrong, message in (
        (msgspec.structs.replace(manifest, format_version=3), "format version 3"),
        (msgspec.structs.replace(manifest, shards=manifest.shards[:1]), "without a hole"),
        (
            msgspec.structs.replace(
                manifest,
                shards=[msgspec.structs.replace(manifest.shards[0], name="../x")],
                end=5,
            ),
            r"\.\./x",
        ),
    ):
        write_manifest(folder, wrong)
        with pytest.raises(CorruptArtifact, match=message):
            ExampleLog.open(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CorruptArtifact, match="cannot be understood"):
        ExampleLog.open(tmp_path)
