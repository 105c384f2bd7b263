from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.config import Project
from twotower.data.days import ImportedData, day_limits_ms, event_digest, exact_shuffle, mix64
from twotower.data.importing import import_tables
from twotower.data.settings import EventSource, OutcomeColumn, TimeColumn
from twotower.errors import CorruptArtifact, DataError, MissingExtra, NotReady

START_MS = 1_650_844_800_000  # 2022-04-25T00:00:00Z
DAY_MS = 86_400_000
LOG = pl.DataFrame(
    {
        "user": ["ann", "bob", "été", "ann", "bob"],
        "item": [3, 1, 2, 3, 9],
        "t": [START_MS + 5, START_MS, START_MS + 5, START_MS + DAY_MS, START_MS + DAY_MS - 1],
        "clicked": [1, 0, 1, 0, 1],
        "stage": ["", None, "shown", " ", None],
    }
)
ELIMINATED = pl.DataFrame(
    {
        "user": ["bob", "ann", "ann", "bob"],
        "item": [2, 7, 2, 3],
        "t": [START_MS + 9, START_MS + 8, START_MS + 5, START_MS - 1],
        "clicked": [None, 0, None, None],
        "stage": ["rank", "prerank ", "rank", "rank"],
    }
)


def project_of(root: Path, stage: str | None = None) -> Project:
    events = EventSource(
        user_id="user",
        item_id="item",
        time=TimeColumn(column="t", unit="ms"),
        outcome=OutcomeColumn(column="clicked"),
        stage=stage,
        shown_stages=("shown",),
    )
    return Project(config_version=1, events=events, path=root / "twotower.toml")


@pytest.fixture
def data(tmp_path: Path) -> ImportedData:
    project = project_of(tmp_path, stage="stage")
    import_tables(project, events=pl.concat([ELIMINATED, LOG]))
    return ImportedData.open(project.data_path)


def test_days_ascend_and_events_are_sorted_by_time_and_id(data: ImportedData) -> None:
    assert data.days == ("2022-04-25", "2022-04-26")
    day = data.day("2022-04-25")
    assert len(day) == 4
    order = np.lexsort((day.event_id, day.event_time_ms))
    np.testing.assert_array_equal(order, np.arange(4))
    assert day.event_time_ms.tolist() == [
        START_MS,
        START_MS + 5,
        START_MS + 5,
        START_MS + DAY_MS - 1,
    ]


def test_the_arrays_have_the_types_of_the_contract(data: ImportedData) -> None:
    day = data.day("2022-04-25")
    assert (data.user_id_kind, data.item_id_kind) == ("str", "int")
    assert day.event_id.dtype == np.uint64
    assert day.user_id.dtype.kind == "S"
    assert set(day.user_id.tolist()) == {b"ann", b"bob", "été".encode()}
    assert day.item_id.dtype == np.int64
    assert day.outcome.dtype == np.bool_
    assert day.stage is None


def test_rows_stay_together(data: ImportedData) -> None:
    frame = data.day_frame("2022-04-25")
    known = {(r["user"], r["item"], r["t"], r["clicked"]) for r in LOG.iter_rows(named=True)}
    found = zip(
        *(frame[name] for name in ("user_id", "item_id", "event_time_ms", "outcome")), strict=True
    )
    assert set(found) <= known


def test_eliminated_candidates_are_no_impressions(data: ImportedData) -> None:
    day, eliminated = data.day("2022-04-25"), data.eliminated("2022-04-25")
    assert eliminated is not None
    assert eliminated.stage is not None
    found = zip(
        eliminated.user_id.tolist(),
        eliminated.item_id.tolist(),
        eliminated.event_time_ms.tolist(),
        eliminated.stage.tolist(),
        strict=True,
    )
    assert list(found) == [
        (b"ann", 2, START_MS + 5, "rank"),
        (b"ann", 7, START_MS + 8, "prerank"),
        (b"bob", 2, START_MS + 9, "rank"),
    ]
    assert not eliminated.outcome.any()
    assert not set(eliminated.event_id.tolist()) & set(day.event_id.tolist())
    assert data.day_entry("2022-04-25").eliminated == 3
    assert data.eliminated("2022-04-26") is None


def test_without_a_stage_column_nothing_is_eliminated(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    import_tables(project, events=LOG)
    data = ImportedData.open(project.data_path)
    assert data.eliminated("2022-04-25") is None
    assert len(data.day("2022-04-25")) == 4


def test_the_entry_of_a_day_agrees_with_its_rows(data: ImportedData) -> None:
    entry, day = data.day_entry("2022-04-25"), data.day("2022-04-25")
    assert (entry.rows, entry.positives) == (4, 3)
    assert entry.digest == event_digest(day.event_id)
    assert entry.positives_digest == event_digest(day.event_id[day.outcome])
    assert (entry.start_ms, entry.end_ms) == (START_MS, START_MS + DAY_MS)


def test_tables_that_were_not_imported_are_none(data: ImportedData) -> None:
    assert data.users() is None
    assert data.items() is None
    assert data.history() is None


def test_an_unknown_day_is_refused_with_the_days_there_are(data: ImportedData) -> None:
    with pytest.raises(
        DataError, match="'2022-05-01' is not among the imported days; imported: 2022-04-25 to 2022"
    ):
        data.day("2022-05-01")


def test_nothing_imported_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"nothing is imported in .*; run: twotower import"):
        ImportedData.open(tmp_path)


def test_reading_after_a_later_import_says_so(data: ImportedData) -> None:
    import_tables(project_of(data.folder.parents[2]), events=LOG.head(3))
    with pytest.raises(NotReady, match="a later import replaced it; open the data again"):
        data.day("2022-04-25")


def test_without_polars_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.data.days.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'twotower\[data\]'"):
        ImportedData.open(tmp_path)


IDS = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=30, unique=True)


@given(IDS, st.randoms())
def test_the_digest_ignores_the_order(ids: list[int], random: object) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (np.array(values, np.uint64) for values in (ids, shuffled))
    assert event_digest(first) == event_digest(second)


@given(IDS)
def test_the_digest_changes_when_a_row_is_swapped_for_a_copy(ids: list[int]) -> None:
    original = np.array(ids, np.uint64)
    swapped = original.copy()
    swapped[0] = swapped[1]
    assert event_digest(original) != event_digest(swapped)


def test_the_digest_sees_what_sums_and_xors_of_raw_ids_do_not() -> None:
    a, b = np.array([1, 4], np.uint64), np.array([2, 3], np.uint64)
    assert event_digest(a) != event_digest(b)
    twice = np.array([7, 7], np.uint64)
    assert event_digest(twice) != event_digest(np.array([], np.uint64)) == "0" * 16


def test_mix64_is_splitmix64() -> None:
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # the first outputs from seed 0
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert mix64(states).tolist() == known


def test_the_shuffle_holds_every_row_once_and_depends_on_the_seed_alone() -> None:
    order = exact_shuffle(1000, seed=3)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, exact_shuffle(1000, seed=3))
    assert (order != exact_shuffle(1000, seed=4)).any()
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        ("2022-04-25", "Asia/Shanghai", 24),
        ("2025-03-30", "Europe/Paris", 23),
        ("2025-10-26", "Europe/Paris", 25),
        ("2018-11-04", "America/Sao_Paulo", 23),  # midnight does not exist
    ],
)
def test_a_local_day_may_have_23_or_25_hours(day: str, zone: str, hours: int) -> None:
    start, end = day_limits_ms(day, zone)
    assert end - start == hours * 3_600_000


def test_the_manifest_is_plain_json(data: ImportedData) -> None:
    manifest = msgspec.json.decode((data.folder / "import.json").read_bytes())
    assert manifest["format_version"] == 2
    assert manifest["report"]["events"]["rows"] == 5
    events = manifest["report"]["events"]
    assert events["eliminated"] == 3
    assert events["eliminated_at"] == {"rank": 2, "prerank": 1}
    assert events["rows_read"] == 9  # the candidate of a day without impressions is rejected
    assert [reason["rows"] for reason in events["rejected"]] == [1]
    assert set(manifest["files"]) == {
        "days/2022-04-25.parquet",
        "days/2022-04-26.parquet",
        "eliminated/2022-04-25.parquet",
    }


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_an_altered_day_is_found_before_it_is_read(data: ImportedData) -> None:
    path = data.folder / "days" / "2022-04-25.parquet"
    size = path.stat().st_size
    for place in range(0, size, max(1, size // 50)):
        flip(path, place)
        with pytest.raises(CorruptArtifact, match="altered since the import; nothing was read"):
            data.day("2022-04-25")
        flip(path, place)
    assert len(data.day("2022-04-25"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match="import again"):
        data.day("2022-04-25")
    path.unlink()
    with pytest.raises(CorruptArtifact, match="found nothing"):
        data.day("2022-04-25")


def test_days_that_were_swapped_are_found(data: ImportedData) -> None:
    first, second = (data.folder / "days" / f"2022-04-{day}.parquet" for day in (25, 26))
    first.rename(first.with_suffix(".aside"))
    second.rename(first)
    first.with_suffix(".aside").rename(second)
    with pytest.raises(CorruptArtifact, match="altered since the import"):
        data.day("2022-04-25")


def test_an_altered_manifest_is_found(data: ImportedData) -> None:
    path = data.folder / "import.json"
    content = msgspec.json.decode(path.read_bytes())
    content["days"]["2022-04-25"]["rows"] += 1
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(CorruptArtifact, match="altered since the import, or belongs to another"):
        ImportedData.open(data.folder.parents[1])


def test_an_import_of_the_first_format_is_read(data: ImportedData) -> None:
    path = data.folder / "import.json"
    content = msgspec.json.decode(path.read_bytes())
    content["format_version"] = 1
    content["files"] = {name: file["bytes"] for name, file in content["files"].items()}
    path.write_bytes(msgspec.json.encode(content))
    opened = ImportedData.open(data.folder.parents[1])
    assert len(opened.day("2022-04-25")) == len(data.day("2022-04-25"))
    flip(data.folder / "days" / "2022-04-25.parquet", -1)
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        opened.day("2022-04-25")
    content["format_version"] = 3
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(CorruptArtifact, match="reads up to 2; upgrade twotower"):
        ImportedData.open(data.folder.parents[1])
