"""IDs, positions and rows never mix."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.ids import IdKind, IdMap, as_id_array, decode_ids, lookup, lookup_one
from twotower.errors import DataError

TEXT = st.text(min_size=1, max_size=8).filter(lambda text: "\0" not in text and text.isprintable())


@pytest.mark.parametrize("kind", ["int", "str"])
def test_positions_are_append_only_and_found_again(kind: IdKind) -> None:
    ids = IdMap(kind)
    first = ids.add([30, 10, 20, 10])
    second = ids.add([5, 30, 40])
    assert first.tolist() == [2, 0, 1, 0]
    assert second[1] == 2
    assert sorted(second[[0, 2]].tolist()) == [3, 4]
    assert ids.positions([10, 99]).tolist() == [0, -1]
    assert [str(value) for value in ids.decode([0, 1, 2])] == ["10", "20", "30"]


@given(st.lists(TEXT, max_size=30), st.lists(TEXT, max_size=30))
def test_string_ids_are_the_same_as_text_and_as_stored_bytes(
    first: list[str], second: list[str]
) -> None:
    as_text, as_bytes = IdMap("str"), IdMap("str")
    for values in (first, second):
        as_text.add(values)
        as_bytes.add(as_id_array(values, "str"))
    np.testing.assert_array_equal(as_text.ids, as_bytes.ids)
    assert len(as_text) == len(set(first) | set(second))
    known = decode_ids(as_text.ids)
    assert as_text.positions(known).tolist() == list(range(len(known)))


@given(st.lists(st.integers(-9, 9), max_size=9), st.lists(TEXT, max_size=9), TEXT)
def test_one_id_is_looked_up_as_many_are(numbers: list[int], texts: list[str], other: str) -> None:
    for kind, values, wanted in (
        ("int", numbers, [*range(-10, 11)]),
        ("str", texts, [*texts, other, f"{other}{other}"]),
    ):
        ids = as_id_array(list(dict.fromkeys(values)), kind)  # type: ignore[arg-type]
        order = np.argsort(ids, kind="stable")
        asked = as_id_array(wanted, kind)  # type: ignore[arg-type]
        for these, by in ((ids, order), (np.sort(ids), None)):
            found = [lookup_one(these, by, asked[[place]]) for place in range(len(asked))]
            assert found == lookup(these, by, asked).tolist()


def test_a_row_is_earned_by_occurrences_and_never_shared() -> None:
    ids = IdMap("int")
    positions = ids.add([1, 2, 3])
    ids.observe(positions[[0, 0, 1]], day=7)
    assert ids.admit(2).tolist() == [1]
    assert ids.rows.tolist() == [1, 0, 0]
    ids.observe(positions[[1, 2, 2]], day=8)
    assert ids.admit(2).tolist() == [2, 3]
    assert ids.rows.tolist() == [1, 2, 3]
    assert ids.last_seen_day.tolist() == [7, 8, 8]
    assert ids.num_rows == 4


@pytest.mark.parametrize("kind", ["int", "str"])
def test_arrays_bring_everything_back(kind: IdKind) -> None:
    ids = IdMap(kind)
    ids.observe(ids.add([1, 200, 3]), day=1)
    ids.admit(1)
    copy = IdMap.from_arrays(ids.arrays())
    assert copy.kind == kind
    assert copy.add([200, 7]).tolist() == ids.add([200, 7]).tolist()
    assert copy.admit(1).tolist() == ids.admit(1).tolist() == []


@pytest.mark.parametrize("value", ["", "a\0b"])
def test_an_empty_id_and_one_with_nul_are_refused(value: str) -> None:
    with pytest.raises(DataError, match="non-empty ID"):
        as_id_array([value], "str")


@pytest.mark.parametrize("value", ["seven", 2**63, -(2**63) - 1, 1.9, True, "1.5"])
def test_what_is_no_integer_of_64_bits_is_refused_as_an_id(value: Any) -> None:
    with pytest.raises(DataError, match="integer IDs"):
        as_id_array([value], "int")
    assert as_id_array([-(2**63), "712", 3], "int").tolist() == [-(2**63), 712, 3]


def test_unsigned_and_floating_arrays_do_not_wrap() -> None:
    assert as_id_array(np.array([7], np.uint64), "int").tolist() == [7]
    for values in (np.array([2**64 - 1], np.uint64), np.array([1.0])):
        with pytest.raises(DataError, match="integer IDs"):
            as_id_array(values, "int")
