"""A delta is whole, of one base and in its order, or it is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_publishing_generation import publish_small
from twotower.errors import CorruptArtifact, LineageError, NotReady
from twotower.failpoints import VARIABLE
from twotower.publishing.delta import (
    Delta,
    DeltaSpan,
    delta_folder,
    list_deltas,
    newest_delta,
    read_deltas,
)
from twotower.publishing.delta_files import write_bytes
from twotower.publishing.delta_rows import DeltaRows, merge_rows
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import MANIFEST, MANIFEST_DIGEST, digest_bytes
from twotower.publishing.store import ModelStore


@pytest.fixture
def base(tmp_path: Path) -> Generation:
    return publish_small(ModelStore(tmp_path))


def rows_of(users: list[int], items: list[int] | None = None, value: float = 1.0) -> DeltaRows:
    items = items or []
    return DeltaRows(
        np.array(users, np.int64),
        np.full((len(users), 3), value, np.float32),
        np.array(items, np.int64),
        np.full((len(items), 3), value, np.float32),
        np.full((len(items), 4), value, np.float32),
    )


def span(first: int, through: int) -> DeltaSpan:
    return DeltaSpan(first_offset=first, through_offset=through, newest_event_time_ms=through)


def write(base: Generation, rows: DeltaRows, first: int, through: int) -> Delta:
    return write_delta(base.path.parents[1], base, rows, span(first, through), now_ms=7)


def data_path(base: Generation) -> Path:
    return base.path.parents[1]


def test_what_is_written_is_read(base: Generation) -> None:
    rows = rows_of([3, 9], [1, 4, 5], 0.25)
    written = write(base, rows, 10, 20)
    assert written.path == delta_folder(data_path(base), base.name) / "d-000001"
    (read,) = read_deltas(data_path(base), base)
    assert (read.sequence, read.digest) == (1, written.digest)
    assert read.manifest == written.manifest
    assert read.manifest.counts == {"users": 2, "items": 3}
    for found, expected in zip(read.rows, rows, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_text_ids_and_an_empty_side_survive(base: Generation) -> None:
    names = np.array([b"ann", "zoë".encode()])
    rows = rows_of([1, 2])._replace(user_ids=names)
    write(base, rows, 0, 1)
    (read,) = read_deltas(data_path(base), base)
    assert read.rows.user_ids.tolist() == names.tolist()
    assert len(read.rows.item_ids) == 0
    assert read.rows.item_vectors.shape == (0, 4)


def test_a_delta_goes_on_where_the_one_before_ended(base: Generation) -> None:
    first = write(base, rows_of([1]), 0, 5)
    with pytest.raises(LineageError, match="begin at offset 5"):
        write(base, rows_of([2]), 6, 8)
    second = write(base, rows_of([2]), 5, 8)
    assert [delta.sequence for delta in read_deltas(data_path(base), base)] == [1, 2]
    assert second.manifest.previous == first.digest
    assert [delta.sequence for delta in read_deltas(data_path(base), base, after=first)] == [2]
    newest = newest_delta(data_path(base), base.name)
    assert newest is not None
    assert newest.span.through_offset == 8


def test_a_foreign_base_is_refused(base: Generation, tmp_path: Path) -> None:
    delta = write(base, rows_of([1]), 0, 5)
    other = publish_small(ModelStore(tmp_path), seed=2)
    with pytest.raises(LineageError, match=r"applies to generation 'g-000001' .* but 'g-000002'"):
        delta.check_follows(other, None)
    altered = Generation(base.path, base.manifest, "f" * 64)
    with pytest.raises(LineageError, match="publish a delta against"):
        delta.check_follows(altered, None)
    with pytest.raises(LineageError, match="over the generation"):
        write(altered, rows_of([1]), 5, 6)


def test_another_order_is_refused(base: Generation) -> None:
    first, second = write(base, rows_of([1]), 0, 5), write(base, rows_of([2]), 5, 6)
    third = write(base, rows_of([3]), 6, 7)
    for delta, previous in ((second, None), (third, first), (first, first), (first, second)):
        with pytest.raises(LineageError, match="deltas apply in their order"):
            delta.check_follows(base, previous)
    assert second.check_follows(base, first) is second


def test_a_delta_of_another_past_is_refused(base: Generation, tmp_path: Path) -> None:
    """The number fits, the delta before it is another one."""
    first, second = write(base, rows_of([1]), 0, 5), write(base, rows_of([2]), 5, 6)
    shutil.rmtree(delta_folder(data_path(base), base.name))
    other = write(base, rows_of([1], value=2.0), 0, 5)
    assert other.digest != first.digest
    with pytest.raises(LineageError, match="expected delta 2"):
        second.check_follows(base, other)


def test_a_gap_is_refused(base: Generation) -> None:
    for number in range(3):
        write(base, rows_of([1]), number, number + 1)
    shutil.rmtree(delta_folder(data_path(base), base.name) / "d-000002")
    with pytest.raises(LineageError, match="found no delta 2"):
        list_deltas(data_path(base), base.name)


def test_every_altered_byte_is_found(base: Generation) -> None:
    delta = write(base, rows_of([1, 2], [3]), 0, 5)
    files = sorted(path for path in delta.path.iterdir())
    assert len(files) == 3
    for path in files:
        content = path.read_bytes()
        path.chmod(0o644)
        for place in {0, len(content) // 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[place] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(CorruptArtifact):
                Delta.open(delta.path)
        for torn in (content[:-1], b"", content + b"x"):
            path.write_bytes(torn)
            with pytest.raises(CorruptArtifact):
                Delta.open(delta.path)
        path.write_bytes(content)
    Delta.open(delta.path)


def test_missing_and_extra_files_are_found(base: Generation) -> None:
    delta = write(base, rows_of([1, 2], [3]), 0, 5)
    (delta.path / "rows.bin").rename(delta.path / "other.bin")
    with pytest.raises(CorruptArtifact, match="found"):
        Delta.open(delta.path)
    (delta.path / "other.bin").rename(delta.path / "rows.bin")
    (delta.path / "more.bin").write_bytes(b"")
    with pytest.raises(CorruptArtifact, match=r"more\.bin"):
        Delta.open(delta.path)


def test_a_folder_under_another_name_is_refused(base: Generation) -> None:
    delta = write(base, rows_of([1]), 0, 5)
    delta.path.rename(delta.path.with_name("d-000007"))
    with pytest.raises(CorruptArtifact, match="is delta 1"):
        Delta.open(delta.path.with_name("d-000007"))


def rewrite_manifest(delta: Delta, **changes: Any) -> None:
    """With a digest that fits."""
    manifest = json.loads((delta.path / MANIFEST).read_bytes())
    content = json.dumps(manifest | changes).encode()
    for name in (MANIFEST, MANIFEST_DIGEST):
        (delta.path / name).unlink()
    write_bytes(delta.path / MANIFEST, content)
    write_bytes(delta.path / MANIFEST_DIGEST, f"{digest_bytes(content)}  {MANIFEST}\n".encode())


def test_a_newer_format_is_refused(base: Generation) -> None:
    delta = write(base, rows_of([1]), 0, 5)
    rewrite_manifest(delta, format_version=3)
    with pytest.raises(CorruptArtifact, match="reads 1 to 2"):
        Delta.open(delta.path)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"start": 1 << 20}, "does not hold its arrays"),
        ({"shape": [1 << 40, 1 << 40]}, "does not hold its arrays"),
        ({"shape": [3]}, "expected"),
        ({"dtype": "<i8"}, "float32"),
        ({"dtype": "|O"}, "damaged"),
        ({"shape": [-1]}, "damaged"),
        (None, "expected the arrays"),
    ],
)
def test_arrays_that_the_file_does_not_hold_are_refused(
    base: Generation, change: dict[str, Any] | None, finding: str
) -> None:
    """The manifest is whole and says what cannot be."""
    delta = write(base, rows_of([1, 2], [3]), 0, 5)
    arrays = json.loads((delta.path / MANIFEST).read_bytes())["arrays"]
    if change is None:
        del arrays["user_embeddings"]
    else:
        arrays["user_embeddings"] |= change
    rewrite_manifest(delta, arrays=arrays)
    with pytest.raises(CorruptArtifact, match=finding):
        Delta.open(delta.path)


def test_rows_are_mapped_and_cannot_be_changed(base: Generation) -> None:
    write(base, rows_of([1, 2], [3], 0.5), 0, 5)
    (read,) = read_deltas(data_path(base), base)
    shutil.rmtree(read.path)  # a prune; whoever still answers from it keeps its pages
    assert read.rows.user_embeddings.tolist() == [[0.5] * 3] * 2
    for array in read.rows:
        assert not array.flags.owndata
        assert array.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    "rows",
    [
        rows_of([2, 1]),
        rows_of([1, 1]),
        rows_of([1], [4, 3]),
        rows_of([1])._replace(user_embeddings=np.zeros((2, 3), np.float32)),
        rows_of([1], value=np.nan),
        rows_of([], [1], value=np.inf),
        rows_of([1, 2], value=np.inf)._replace(
            user_embeddings=np.array([[np.inf] * 3, [-np.inf] * 3], np.float32)
        ),
    ],
    ids=["descending", "twice", "items", "shape", "nan", "infinite", "cancelling"],
)
def test_rows_that_cannot_be_served_are_never_written(base: Generation, rows: DeltaRows) -> None:
    write(base, rows_of([1]), 0, 5)
    with pytest.raises(CorruptArtifact):
        write(base, rows, 5, 6)
    assert len(list_deltas(data_path(base), base.name)) == 1


def test_large_numbers_are_finite(base: Generation) -> None:
    """Their sum of squares is not."""
    write(base, rows_of([1], value=3e38), 0, 5)


def test_newer_rows_win_when_deltas_are_merged() -> None:
    older, newer = rows_of([1, 4, 9], [2], 1.0), rows_of([0, 4], [1, 2], 2.0)
    merged = merge_rows(older, newer)
    assert merged.user_ids.tolist() == [0, 1, 4, 9]
    assert merged.user_embeddings[:, 0].tolist() == [2, 1, 2, 1]
    assert merged.item_ids.tolist() == [1, 2]
    assert merged.item_vectors[:, 0].tolist() == [2, 2]
    nothing = DeltaRows.empty(older.user_ids, older.item_ids, 3, 4)
    assert not nothing
    assert merge_rows(nothing, older).user_ids.tolist() == [1, 4, 9]
    assert merge_rows(older, nothing).user_ids.tolist() == [1, 4, 9]
    items = merge_rows(older, newer).without_users()
    assert (len(items.user_ids), len(items.user_embeddings)) == (0, 0)
    assert items.item_ids.tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(40))
def test_merging_is_what_a_dictionary_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prefix = "" if seed % 2 else "user "
    sides = []
    for number, size in enumerate(rng.integers(0, 25, 2)):
        values = np.unique(rng.integers(0, 30 * 10 ** (seed % 3 * number), size))
        ids = values if seed % 2 else np.unique([f"{prefix}{value}".encode() for value in values])
        ids = ids if len(ids) else (np.zeros(0, np.int64) if seed % 2 else np.zeros(0, "S1"))
        sides.append(rows_of([])._replace(user_ids=ids, user_embeddings=_rows(rng, len(ids))))
    older, newer = sides
    merged = merge_rows(older, newer).check("both")
    expected = {
        user: row.tolist()
        for side in (older, newer)
        for user, row in zip(side.user_ids.tolist(), side.user_embeddings, strict=True)
    }
    assert merged.user_ids.tolist() == sorted(expected)
    assert merged.user_embeddings.tolist() == [expected[user] for user in sorted(expected)]


def _rows(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.normal(size=(size, 3)).astype(np.float32)


def test_one_writer_at_a_time(base: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.publishing.delta_writing._LOCK_TIMEOUT_S", 0.0)

    def write_inside(step: str) -> None:
        with pytest.raises(NotReady, match="writing a delta"):
            write(base, rows_of([1]), 0, 5)

    write_delta(data_path(base), base, rows_of([1]), span(0, 5), now_ms=7, at_step=write_inside)
    assert len(list_deltas(data_path(base), base.name)) == 1


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_publishing_delta import rows_of, write
from twotower.publishing.generation import Generation
write(Generation.open(Path(sys.argv[1])), rows_of([1, 2], [3]), 5, 6)
"""


def test_a_killed_write_leaves_all_or_nothing(base: Generation) -> None:
    steps: list[str] = []
    rows = rows_of([1, 2])
    write_delta(data_path(base), base, rows, span(0, 5), now_ms=7, at_step=steps.append)
    folder = delta_folder(data_path(base), base.name)
    for number, step in enumerate(steps, 1):
        shutil.rmtree(folder / "d-000002", ignore_errors=True)
        command = [sys.executable, "-c", KILLED, str(base.path), str(Path(__file__).parent)]
        killed = subprocess.run(
            command, env={**os.environ, VARIABLE: f"*:{number}"}, check=False, timeout=60
        )
        assert killed.returncode == -9
        has_appeared = step in ("delta.rename", "delta.folder")
        deltas = [*read_deltas(data_path(base), base)]
        assert len(deltas) == 1 + has_appeared
    shutil.rmtree(folder / "d-000002")
    write(base, rows, 5, 6)
    assert not [*folder.glob(".staging*")]
