"""TFRecord files by themselves: what is written comes back, and damage is found and named."""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrecord_rows import KINDS, assert_same, rows
from twotower.data.tfrecord import (
    Column,
    ColumnKind,
    RaggedColumn,
    encode_rows,
    frames,
    read_shard,
    write_shard,
)
from twotower.data.tfrecord.frames import seal
from twotower.durable import replace_file
from twotower.errors import CorruptArtifact, DataError


def test_every_kind_of_column_comes_back(tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "shard", rows())
    found = read_shard(tmp_path / "shard", KINDS, entry=entry)
    assert_same(found.columns, rows())
    assert (found.end, entry.rows) == (entry.bytes, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard"]


def test_numbers_alone_come_back_with_their_signs(tmp_path: Path) -> None:
    numbers: dict[str, Column] = {
        "one": np.array([0, 1, 127, 128]),
        "negative": np.array([-1, 5, np.iinfo(np.int64).min, 2**62]),
        "is_positive": np.array([True, False, True, True]),
        "three": RaggedColumn(np.arange(12) - 6, np.arange(0, 13, 3)),
        "weight": np.array([0.5, -np.inf, 1e-40, np.pi]),
    }
    entry = write_shard(tmp_path / "shard", numbers)
    kinds: dict[str, ColumnKind] = dict.fromkeys(numbers, "int")
    kinds |= {"three": "ints", "weight": "float"}
    found = read_shard(tmp_path / "shard", kinds, entry=entry).columns
    as_float32 = np.asarray(numbers["weight"], np.float32)
    assert_same(found, numbers | {"weight": as_float32})


def test_numbers_in_uneven_lists_come_back(tmp_path: Path) -> None:
    columns: dict[str, Column] = {
        "user_id": np.arange(3),
        "recent": RaggedColumn(np.arange(6), np.array([0, 2, 3, 6])),
    }
    write_shard(tmp_path / "shard", columns)
    found = read_shard(tmp_path / "shard", {"user_id": "int", "recent": "ints"})
    assert_same(found.columns, columns)


@given(data=st.data())
def test_any_columns_come_back(data: st.DataObject, tmp_path_factory: Any) -> None:
    num_rows = data.draw(st.integers(0, 6))
    kinds = data.draw(st.dictionaries(st.text(max_size=5), st.sampled_from(list(KINDS.values()))))
    columns = {name: data.draw(column_strategy(kind, num_rows)) for name, kind in kinds.items()}
    path = tmp_path_factory.getbasetemp() / "any"
    entry = write_shard(path, columns)
    assert entry.rows == (num_rows if columns else 0)
    assert_same(read_shard(path, kinds, entry=entry).columns, columns)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "byte": st.binary(max_size=5),
}
DTYPES: dict[str, Any] = {"int": np.int64, "float": np.float32, "byte": object}


def column_strategy(kind: ColumnKind, num_rows: int) -> st.SearchStrategy[Column]:
    """Columns of a kind: one value a row, or a list."""
    name = next(name for name in VALUES if kind.startswith(name))

    def array(values: list[Any]) -> Any:
        column = np.empty(len(values), DTYPES[name])
        column[:] = values
        return column

    def ragged(lists: list[list[Any]]) -> Column:
        offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
        return RaggedColumn(array([value for values in lists for value in values]), offsets)

    if kind in ("int", "float", "bytes"):
        return st.lists(VALUES[name], min_size=num_rows, max_size=num_rows).map(array)
    lists = st.lists(VALUES[name], max_size=3)
    return st.lists(lists, min_size=num_rows, max_size=num_rows).map(ragged)


def test_rows_are_written_alike_however_many_at_once(tmp_path: Path) -> None:
    """More rows than are encoded at once, and columns that change their shape on the way."""
    columns: dict[str, Column] = {"user_id": np.arange(10_000) - 3, **rows(10_000)}
    entry = write_shard(tmp_path / "shard", columns)
    assert_same(read_shard(tmp_path / "shard", KINDS, entry=entry).columns, rows(10_000))


def test_unwanted_features_are_passed_over(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard", rows())
    kinds: dict[str, ColumnKind] = {"stage": "bytes", "never_written": "ints"}
    found = read_shard(tmp_path / "shard", kinds).columns
    never = RaggedColumn(np.zeros(0, np.int64), np.zeros(51, np.int64))
    assert_same(found, {"stage": rows()["stage"], "never_written": never})


def test_gzip_is_read_and_a_torn_one_refused(tmp_path: Path) -> None:
    packed = gzip.compress(encode_rows(rows()))
    (tmp_path / "shard.gz").write_bytes(packed)
    assert_same(read_shard(tmp_path / "shard.gz", KINDS).columns, rows())
    (tmp_path / "shard.gz").write_bytes(packed[:-20])
    with pytest.raises(CorruptArtifact, match="cannot be unpacked"):
        read_shard(tmp_path / "shard.gz", KINDS, may_be_cut=True)


def test_a_length_that_looks_like_gzip_is_a_length(tmp_path: Path) -> None:
    """The first record has 0x8b1f bytes, which begin a gzip file as well."""
    filling = np.empty(1, object)
    for size in range(0x8B1F - 64, 0x8B1F):
        filling[0] = bytes(size)
        content = encode_rows({"text": filling})
        if content[:2] == b"\x1f\x8b":
            break
    assert content[:2] == b"\x1f\x8b"
    (tmp_path / "shard").write_bytes(content)
    found = read_shard(tmp_path / "shard", {"text": "bytes"}).columns["text"]
    assert not isinstance(found, RaggedColumn)
    assert found.tolist() == filling.tolist()


def test_a_cut_tail_resumes_at_the_last_whole_record(tmp_path: Path) -> None:
    path, whole = tmp_path / "shard", encode_rows(rows(3))
    ends = [0, *(len(encode_rows(rows_up_to(3, number))) for number in (1, 2, 3))]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = read_shard(path, KINDS, may_be_cut=True)
        num_whole = sum(end <= length for end in ends) - 1
        assert found.end == ends[num_whole]
        assert_same(found.columns, rows_up_to(3, num_whole))
    path.write_bytes(whole)
    rest = read_shard(path, KINDS, start=ends[2])
    assert rest.end == len(whole)
    assert np.asarray(rest.columns["user_id"]).tolist() == as_list(rows(3)["user_id"])[2:]


def rows_up_to(num_rows: int, end: int) -> dict[str, Column]:
    """The first rows of `rows(num_rows)`."""
    return {name: first(column, end) for name, column in rows(num_rows).items()}


def first(column: Column, end: int) -> Column:
    if isinstance(column, RaggedColumn):
        offsets = column.offsets[: end + 1]
        return RaggedColumn(column.values[: offsets[-1]], offsets)
    return column[:end]


def as_list(column: Column) -> list[Any]:
    assert not isinstance(column, RaggedColumn)
    values: list[Any] = column.tolist()
    return values


def test_a_cut_file_is_refused_where_none_is_expected(tmp_path: Path) -> None:
    content = encode_rows(rows(3))
    (tmp_path / "shard").write_bytes(content[:-1])
    end = len(encode_rows(rows_up_to(3, 2)))
    with pytest.raises(CorruptArtifact, match=f"ends at byte {end} of {len(content) - 1};"):
        read_shard(tmp_path / "shard", KINDS)


@pytest.mark.parametrize("may_be_cut", [False, True])
def test_any_flipped_bit_is_found_with_file_and_record(tmp_path: Path, may_be_cut: bool) -> None:
    path, whole = tmp_path / "shard", encode_rows(rows(3))
    ends = [0, *(len(encode_rows(rows_up_to(3, number))) for number in (1, 2, 3))]
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        begin = max(end for end in ends if end <= place)
        with pytest.raises(CorruptArtifact, match=rf"shard: .* at byte {begin};"):
            read_shard(path, KINDS, may_be_cut=may_be_cut)


def test_another_file_than_the_manifest_names_is_refused(tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "shard", {"user_id": np.array([5])})
    assert write_shard(tmp_path / "shard", {"user_id": np.array([6])}).bytes == entry.bytes
    with pytest.raises(CorruptArtifact, match=f"checksum {entry.xxh3[:12]}"):
        read_shard(tmp_path / "shard", {"user_id": "int"}, entry=entry)


@pytest.mark.parametrize("start", [-1, 10**6])
def test_a_start_outside_the_file_is_refused(tmp_path: Path, start: int) -> None:
    write_shard(tmp_path / "shard", rows(3))
    with pytest.raises(CorruptArtifact, match=f"expected a record at byte {start}"):
        read_shard(tmp_path / "shard", KINDS, start=start, may_be_cut=True)


def test_a_feature_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard", rows())
    with pytest.raises(DataError, match="byte 0 has values of another kind in 'weight'"):
        read_shard(tmp_path / "shard", {"weight": "int"})


@pytest.mark.parametrize("number", [0, 2])
def test_another_number_of_values_than_one_is_refused(tmp_path: Path, number: int) -> None:
    offsets = np.cumsum([0, 1, number, 1])
    write_shard(tmp_path / "shard", {"user_id": RaggedColumn(np.arange(offsets[-1]), offsets)})
    with pytest.raises(DataError, match=f"found {number} in record 1;"):
        read_shard(tmp_path / "shard", {"user_id": "int"})


def ragged(column: Column) -> RaggedColumn:
    assert isinstance(column, RaggedColumn)
    return column


TEXTS = np.array(["a", "b"])
REFUSED: dict[str, tuple[Column, str]] = {
    "text": (TEXTS, "found <U1"),
    "unsigned": (np.zeros(2, np.uint64), "found uint64"),
    "objects": (TEXTS.astype(object), "found object"),
    "matrix": (np.zeros((2, 3)), "in 2 dimensions"),
    "short offsets": (RaggedColumn(np.arange(3), np.array([0, 1, 2])), "rise from 0 to 3"),
    "falling offsets": (RaggedColumn(np.arange(3), np.array([0, 4, 3])), "rise from 0 to 3"),
    "one row more": (np.arange(3), "columns of one length"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_columns_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    column, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path / "shard", {"column": column, "beside": np.arange(2)})
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "shard", rows(3))

    def die(step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "shard", rows(3, seed=6), at_step=die)
    assert_same(read_shard(tmp_path / "shard", KINDS, entry=entry).columns, rows(3))


PARTS_BYTES = 20 << 20
"""Enough for the disk to be asked for some of it before all is there."""


def test_a_file_in_parts_is_whole(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, PARTS_BYTES, np.uint8)
    parts = (part.data for part in np.array_split(content, 7))
    replace_file(tmp_path / "file", parts)
    assert (tmp_path / "file").read_bytes() == content.tobytes()


def test_an_error_of_the_disk_between_two_parts_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of it once: the fsync at the end would know nothing of it."""
    answers = iter([None, OSError(errno.EIO, "lost"), *itertools.repeat(None, 100)])

    def answer(descriptor: int) -> None:
        if error := next(answers):
            raise error

    monkeypatch.setattr(os, "fdatasync", answer)
    part = bytes(9 << 20)
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(OSError, match="lost"):
        replace_file(tmp_path / "file", (memoryview(part) for _ in range(4)))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"before")]


def framed(contents: list[bytes]) -> bytes:
    """Records of any content, with right checksums."""
    parts = []
    for content in contents:
        record = np.zeros(len(content) + 16, np.uint8)
        record[:8] = np.frombuffer(struct.pack("<Q", len(content)), np.uint8)
        record[12:-4] = np.frombuffer(content, np.uint8)
        parts.append(bytes(seal(record, np.array([[12, len(content)]]))))
    return b"".join(parts)


@given(data=st.data())
def test_records_that_are_no_examples_are_refused_or_read(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    """A checksum is no proof: whatever is in a record, reading stays within it."""
    example = bytearray(encode_rows(rows(4))[12:-4])
    for place in data.draw(st.lists(st.integers(0, len(example) - 1), min_size=1, max_size=5)):
        example[place] = data.draw(st.integers(0, 255))
    content = bytes(example[: data.draw(st.integers(0, len(example)))])
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(framed([content]))
    with contextlib.suppress(CorruptArtifact, DataError):
        read_shard(path, KINDS)


def test_a_record_that_is_no_example_is_named(tmp_path: Path) -> None:
    good = encode_rows({"user_id": np.array([1])})[12:-4]
    (tmp_path / "shard").write_bytes(framed([good, good[:-1]]))
    with pytest.raises(CorruptArtifact, match=rf"byte {len(good) + 16} is no tf.train.Example"):
        read_shard(tmp_path / "shard", {"user_id": "int"})


def test_unpacked_numbers_and_repeated_names_are_read(tmp_path: Path) -> None:
    """Protobuf allows both, and other writers do it: values one by one; the last name counts."""

    def entry(name: bytes, feature: bytes) -> bytes:
        return field(10, field(10, name) + field(18, feature))

    unpacked = field(26, b"\x08\x05\x08\x07")
    floats = field(18, b"\x0d\x00\x00\x80\x3f")
    padded = field(26, field(10, b"\x81\x00\x02"))
    features = entry(b"a", field(26, b"\x08\x01")) + entry(b"a", unpacked) + entry(b"b", floats)
    features += entry(b"c", padded)
    (tmp_path / "shard").write_bytes(framed([field(10, features), b""]))
    found = read_shard(tmp_path / "shard", {"a": "ints", "b": "floats", "c": "ints"}).columns
    assert ragged(found["a"]).values.tolist() == [5, 7]
    assert ragged(found["a"]).offsets.tolist() == [0, 2, 2]
    assert ragged(found["b"]).values.tolist() == [1.0]
    assert ragged(found["c"]).values.tolist() == [1, 2]


def field(tag: int, content: bytes) -> bytes:
    """A field of protobuf with a length."""
    length, digits = len(content), bytearray([tag])
    while length >= 128:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes([*digits, length]) + content


def example(features: dict[str, bytes]) -> bytes:
    """The record of some features, each the content of its `Feature` message."""
    entries = [
        field(10, field(10, name.encode()) + field(18, feature))
        for name, feature in features.items()
    ]
    return framed([field(10, b"".join(entries))])


LENGTHS = (0, 1, 99, 108, 109, 110, 118, 119, 120, 121, 127, 128, 129, 300)


@pytest.mark.parametrize("name", ["n", "n" * 120, "n" * 121, "n" * 200])
def test_records_are_those_of_protobuf_however_long(tmp_path: Path, name: str) -> None:
    """Of a short entry the lengths are known together: one byte more and they are not."""
    strings = np.empty(1, object)
    for length in LENGTHS:
        strings[0] = bytes(length)
        content = encode_rows(
            {
                name: RaggedColumn(np.arange(length) % 128, np.array([0, length])),
                f"x{name}": RaggedColumn(np.zeros(length), np.array([0, length])),
                f"{name}x": strings,
            }
        )
        numbers = bytes(value % 128 for value in range(length))
        expected = {
            name: field(26, field(10, numbers)),
            f"x{name}": field(18, field(10, bytes(4 * length))),
            f"{name}x": field(10, field(10, bytes(length))),
        }
        present = {name: feature for name, feature in expected.items() if length or "x" in name[1:]}
        assert content == example(present)
        (tmp_path / "shard").write_bytes(content)
        kinds: dict[str, ColumnKind] = {f"{name}x": "byte_lists", name: "ints"}
        kinds |= {f"x{name}": "floats"}
        found = read_shard(tmp_path / "shard", kinds).columns
        assert ragged(found[name]).values.tolist() == list(numbers)
        assert ragged(found[f"x{name}"]).values.tolist() == [0.0] * length
        assert ragged(found[f"{name}x"]).values.tolist() == [bytes(length)]


def test_a_name_that_ends_like_another_is_another(tmp_path: Path) -> None:
    one = field(26, field(10, b"\x01"))
    (tmp_path / "shard").write_bytes(example({"b": one, "c" * 130: one}))
    names = ("a", "ab", "cc" + "c" * 130, "b")
    kinds: dict[str, ColumnKind] = dict.fromkeys(names, "ints")
    found = read_shard(tmp_path / "shard", kinds).columns
    assert [len(ragged(column).values) for column in found.values()] == [0, 0, 0, 1]


@pytest.mark.parametrize("way", ["instruction", "library"])
def test_the_library_agrees_with_the_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What one writes the other accepts, and an altered byte it refuses, wherever it is."""
    content = encode_rows(rows(3))
    monkeypatch.setattr(frames, "_has_instruction", lambda: way == "instruction")
    assert encode_rows(rows(3)) == content
    (tmp_path / "shard").write_bytes(content)
    assert_same(read_shard(tmp_path / "shard", KINDS).columns, rows(3))
    for place in (0, 9, 40, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 4
        (tmp_path / "shard").write_bytes(altered)
        with pytest.raises(CorruptArtifact, match="the checksum of a record's"):
            read_shard(tmp_path / "shard", KINDS)


TENSORFLOW_WROTE = "0e00000000000000c5e5693f0a0c0a0a0a016112051a030a010139e87850"


def test_the_bytes_are_those_of_the_format() -> None:
    """The record of `{"a": 1}` as TensorFlow 2.21 wrote it, so that no TensorFlow is needed."""
    assert encode_rows({"a": np.array([1])}).hex() == TENSORFLOW_WROTE
