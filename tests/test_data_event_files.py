"""Tables of the project's own form become the events that they tell of."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from twotower.data.event_files import read_event_file
from twotower.data.event_log.blocks import event_keys
from twotower.data.events import Event, IdKinds
from twotower.data.settings import EventSource, OutcomeColumn, TimeColumn
from twotower.data.source_columns import hash_texts
from twotower.errors import DataError

NOW_MS = 1_800_000_000_000
TIME_MS = 1_700_000_000_000
SOURCE = EventSource(
    user_id="user",
    item_id="item",
    time=TimeColumn(column="time", unit="s"),
    outcome=OutcomeColumn(column="clicked"),
    event_id="id",
    stage="stage",
)
ROWS = {
    "user": ["1", "2", "", "3", "4"],
    "item": ["10", "11", "12", "13", "14"],
    "time": [TIME_MS // 1000 + n for n in range(5)],
    "clicked": [0, 1, 0, 0, 0],
    "id": ["a", "b", "c", "d", "x" * 300],
    "stage": ["", "", "", "ranking", ""],
}


def event(number: int, name: str, **fields: str) -> Event:
    return Event(
        event_id=fields.pop("event_id", name),
        user_id=number + 1 if number < 2 else 3,
        item_id=10 + number,
        event_time_ms=TIME_MS + 1000 * number,
        request_id=name,
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_become_impressions_clicks_and_candidates(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"log[1].{form}"
    table = pl.DataFrame(ROWS)
    table.write_csv(file) if form == "csv" else table.write_parquet(file)
    rows = read_event_file(file, SOURCE, "UTC", None, NOW_MS)
    assert rows.events == [
        event(0, "a", kind="impression"),
        event(1, "b", kind="impression"),
        event(1, "b", kind="outcome", outcome="click", event_id="b/outcome"),
        event(3, "d", kind="candidate", stage="ranking"),
    ]
    assert list(rows.places) == [0, 1, 1, 3]
    assert [refusal.row for refusal in rows.refused] == [2, 4]
    assert rows.refused[0].reason == "user ID is empty"
    assert b'"item":' in rows.refused[0].raw


def test_ids_follow_the_project_where_it_has_decided(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    pl.DataFrame(ROWS).head(2).write_csv(file)
    rows = read_event_file(file, SOURCE, "UTC", IdKinds("str", "int"), NOW_MS)
    assert {type(found.user_id) for found in rows.events} == {str}
    assert {type(found.item_id) for found in rows.events} == {int}


def test_an_impression_has_the_key_that_the_import_gives_it(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    pl.DataFrame(ROWS).head(1).write_csv(file)
    rows = read_event_file(file, SOURCE, "UTC", None, NOW_MS)
    assert event_keys(rows.events).tolist() == hash_texts(pl.Series(["a"])).to_list()


def test_without_an_event_id_the_row_is_the_id(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    pl.DataFrame(ROWS).head(2).write_csv(file)
    source = EventSource(user_id="user", item_id="item", time=SOURCE.time, outcome=SOURCE.outcome)
    first = read_event_file(file, source, "UTC", None, NOW_MS).events
    assert first == read_event_file(file, source, "UTC", None, NOW_MS).events
    assert len({found.event_id for found in first}) == 3


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    pl.DataFrame(ROWS).drop("clicked").write_csv(file)
    with pytest.raises(DataError, match="clicked"):
        read_event_file(file, SOURCE, "UTC", None, NOW_MS)
