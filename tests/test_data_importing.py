from __future__ import annotations

import gzip
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from twotower.config import Project, load_project
from twotower.data import import_store
from twotower.data.days import ImportedData
from twotower.data.import_report import ImportReport
from twotower.data.importing import import_tables
from twotower.data.settings import (
    EntitySource,
    EventSource,
    FeatureSettings,
    HistorySource,
    OutcomeColumn,
    TimeColumn,
)
from twotower.errors import ConfigError, CorruptArtifact, DataError, TwoTowerError

EXAMPLES = Path(__file__).parents[1] / "examples"
START_MS = 1_650_844_800_000  # 2022-04-25T00:00:00Z
NOW_MS = START_MS + 30 * 86_400_000
HEADER = "user,item,t,clicked\n"
GOOD = HEADER + f"1,10,{START_MS},1\n2,11,{START_MS + 1000},0\n"


def project_of(root: Path, **changes: object) -> Project:
    events = EventSource(
        files="log*.csv",
        user_id="user",
        item_id="item",
        time=TimeColumn(column="t", unit="ms"),
        outcome=OutcomeColumn(column="clicked"),
    )
    project = Project(config_version=1, events=events, path=root / "twotower.toml")
    return msgspec.structs.replace(project, **changes)


def with_events(project: Project, **changes: object) -> Project:
    return msgspec.structs.replace(
        project, events=msgspec.structs.replace(project.events, **changes)
    )


def run(root: Path, text: str, **event_changes: object) -> ImportReport:
    (root / "log.csv").write_text(text)
    return import_tables(with_events(project_of(root), **event_changes), now_ms=NOW_MS)


def refusal(root: Path, text: str, **event_changes: object) -> str:
    with pytest.raises(TwoTowerError) as caught:
        run(root, text, **event_changes)
    assert not (root / "twotower-data").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- what is refused, with its text


def test_a_misspelt_column_names_the_file_the_columns_and_a_suggestion(tmp_path: Path) -> None:
    assert refusal(tmp_path, GOOD, user_id="usr") == (
        "log.csv: no column 'usr', which $.events.user_id names; columns: user, item, t, clicked; "
        "did you mean 'user'? nothing was written"
    )
    assert "which $.events.time.column names" in refusal(
        tmp_path, GOOD, time=TimeColumn(column="zzz", unit="ms")
    )


@pytest.mark.parametrize(
    ("unit", "value", "right"),
    [
        ("s", str(START_MS), "ms"),
        ("ms", str(START_MS // 1000), "s"),
        ("ms", str(START_MS * 1000), "us"),
        ("us", str(START_MS * 1_000_000), "ns"),
        ("iso", str(START_MS), "ms"),
        ("ms", "2022-04-25T00:00:00Z", "iso"),
    ],
)
def test_a_wrong_time_unit_is_detected_with_the_one_that_makes_sense(
    tmp_path: Path, unit: str, value: str, right: str
) -> None:
    message = refusal(tmp_path, f"{HEADER}1,2,{value},1\n", time=TimeColumn(column="t", unit=unit))  # type: ignore[arg-type]
    assert message == (
        f"log.csv: column 't' read in the unit '{unit}' gives no times between 1990 and tomorrow "
        f"(first value: {value}); in the unit '{right}' it gives 2022-04-25 to 2022-04-25; "
        f'set unit = "{right}"; nothing was written'
    )


def test_an_outcome_that_is_always_0_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, GOOD.replace(",1\n", ",0\n")) == (
        "the outcome 'clicked' is 0 in all 2 events, so there is nothing to learn from; check "
        "$.events.outcome (column, threshold, values); nothing was written"
    )


def test_times_that_are_all_in_the_future_are_refused(tmp_path: Path) -> None:
    late = NOW_MS + 2 * 86_400_000
    message = refusal(tmp_path, f"{HEADER}1,2,{late},1\n3,4,{late},0\n")
    assert message.startswith(
        "all 2 rows of the event files are rejected, 2 because the time is in the future "
        "(first: log.csv line 2, {'user': '1', "
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("log.csv", b"", "log.csv: cannot be read: empty CSV"),
        ("log.csv", HEADER.encode(), "the event files hold no rows; nothing was written"),
        ("log.csv", b"user,item,t,clicked\n1,2,3,4,5\n", "log.csv: cannot be read: found more"),
        ("log.csv", b"user,item,t,clicked\n\xff,2,3,1\n", "log.csv: cannot be read: invalid utf-8"),
        ("log.csv.gz", gzip.compress(GOOD.encode())[:-12], "log.csv.gz: cannot be read: "),
        ("log.parquet", b"PAR1 no", "log.parquet: cannot be read: "),
        ("log.json", b"{}", "log.json: expected a file ending in .csv, .tsv,"),
    ],
    ids=["no-header", "no-rows", "ragged", "not-utf8", "torn-gzip", "no-parquet", "unknown-kind"],
)
def test_unreadable_files_are_named(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    project = with_events(project_of(tmp_path), files=name)
    with pytest.raises(DataError) as caught:
        import_tables(project, now_ms=NOW_MS)
    assert str(caught.value).startswith(expected)


def test_files_that_do_not_exist_or_are_not_named(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    with pytest.raises(DataError, match=r"\$\.events\.files: no file matches 'log\*\.csv' in"):
        import_tables(project)
    with pytest.raises(ConfigError, match=r"\$\.events\.files is missing"):
        import_tables(with_events(project, files=()))
    with pytest.raises(ConfigError, match=r"a table of users was handed over, but there is no"):
        import_tables(project, users=pl.DataFrame())
    with pytest.raises(DataError, match="expected a polars, pandas or Arrow table, found list"):
        import_tables(project, events=[1])


def test_a_numeric_feature_of_words_is_refused(tmp_path: Path) -> None:
    users = EntitySource(id="id", features={"age": FeatureSettings(kind="numeric")})
    (tmp_path / "log.csv").write_text(GOOD)
    with pytest.raises(DataError, match="feature 'age' is numeric, but none of its 2 values is a"):
        import_tables(
            project_of(tmp_path, users=users),
            users=pl.DataFrame({"id": [1, 2], "age": ["old", "young"]}),
            now_ms=NOW_MS,
        )


# ---- what is rejected or dropped, and counted


def test_rejected_rows_are_counted_by_reason_with_lines_and_values(tmp_path: Path) -> None:
    late = NOW_MS + 2 * 86_400_000
    rows = [
        f"1,10,{START_MS},1",
        f",10,{START_MS},1",
        f"1,,{START_MS},0",
        "1,10,,0",
        "1,10,soon,0",
        "1,10,77,0",
        f"1,10,{late},0",
        f"1,10,{START_MS},maybe",
        *[f",{i},{START_MS},0" for i in range(9)],
        *[f"1,{i},{START_MS},0" for i in range(20)],
    ]
    report = run(tmp_path, HEADER + "\n".join(rows) + "\n")
    counts = {rejection.reason: rejection.rows for rejection in report.events.rejected}
    assert counts == {
        "user ID is empty": 10,
        "item ID is empty": 1,
        "time is empty": 1,
        "time is not readable in the unit 'ms'": 1,
        "time is before 1990": 1,
        "time is in the future": 1,
        "outcome is not 0 or 1": 1,
    }
    assert report.events.rows_read == len(rows)
    assert report.events.rows + report.events.duplicates + sum(counts.values()) == len(rows)
    empty = report.events.rejected[0]
    assert len(empty.sample) == 5
    assert (empty.sample[0].file, empty.sample[0].line) == ("log.csv", 3)
    assert empty.sample[0].values["item"] == "10"
    assert "10 events are rejected: user ID is empty" in report.warnings


def test_exact_copies_of_a_row_count_once(tmp_path: Path) -> None:
    (tmp_path / "log2.csv").write_text(GOOD)
    report = run(tmp_path, GOOD + GOOD.split("\n")[1] + "\n")
    assert (report.events.rows_read, report.events.duplicates, report.events.rows) == (5, 3, 2)
    assert report.events.conflicting_duplicates == 0
    assert "3 rows repeat an earlier event and are dropped" in report.notes


def test_a_repeated_event_id_counts_once_and_other_contents_are_reported(tmp_path: Path) -> None:
    header = "user,item,t,clicked,eid\n"
    rows = [
        f"1,10,{START_MS},1,a",
        f"1,10,{START_MS},1,a",
        f"1,99,{START_MS},1,a",
        f"2,9,{START_MS},0,b",
    ]
    report = run(tmp_path, header + "\n".join(rows) + "\n", event_id="eid")
    assert (report.events.duplicates, report.events.conflicting_duplicates) == (2, 1)
    assert any("1 rows repeat an event ID with other contents" in w for w in report.warnings)
    day = ImportedData.open(tmp_path / "twotower-data").day("2022-04-25")
    assert sorted(day.item_id.tolist()) == [9, 10]


def test_rows_that_differ_in_an_unused_column_are_two_events(tmp_path: Path) -> None:
    text = f"user,item,t,clicked,extra\n1,10,{START_MS},1,x\n1,10,{START_MS},1,y\n"
    assert run(tmp_path, text).events.rows == 2


def test_an_outcome_that_is_always_1_warns_unless_the_log_holds_positives_only(
    tmp_path: Path,
) -> None:
    always = GOOD.replace(",0\n", ",1\n")
    assert any("is 1 in all 2 events" in warning for warning in run(tmp_path, always).warnings)
    silent = run(tmp_path, always, outcome=None)
    assert silent.warnings == ()
    assert silent.events.positives == 2


@pytest.mark.parametrize(
    ("outcome", "cells", "expected"),
    [
        (OutcomeColumn(column="c"), ["1", "0", "true", "False", "1.0"], [1, 0, 1, 0, 1]),
        (
            OutcomeColumn(column="c", threshold=10),
            ["10", "9.9", "11", "-1", "1e3"],
            [1, 0, 1, 0, 1],
        ),
        (
            OutcomeColumn(column="c", values=("buy", 1)),
            ["buy", "", "BUY", "1", "2"],
            [1, 0, 1, 1, 0],
        ),
    ],
)
def test_outcome_rules(
    tmp_path: Path, outcome: OutcomeColumn, cells: list[str], expected: list[int]
) -> None:
    rows = [f"1,{i},{START_MS + i},{cell}" for i, cell in enumerate(cells)]
    run(tmp_path, "user,item,t,c\n" + "\n".join(rows) + "\n", outcome=outcome)
    day = ImportedData.open(tmp_path / "twotower-data").day("2022-04-25")
    assert day.outcome.tolist() == [bool(value) for value in expected]


# ---- IDs, days, times


def test_ids_are_integers_only_if_all_of_a_side_are(tmp_path: Path) -> None:
    users = EntitySource(id="id")
    project = project_of(tmp_path, users=users)
    (tmp_path / "log.csv").write_text(GOOD)
    table = pl.DataFrame({"id": ["1", "02"]})
    report = import_tables(project, users=table, now_ms=NOW_MS)
    assert (report.user_id_kind, report.item_id_kind) == ("str", "int")
    data = ImportedData.open(project.data_path)
    assert data.day("2022-04-25").user_id.tolist() == [b"1", b"2"]
    assert data.day("2022-04-25").item_id.tolist() == [10, 11]
    users_frame = data.users()
    assert users_frame is not None
    assert users_frame["user_id"].to_list() == ["02", "1"]


def test_a_few_odd_ids_among_integers_warn(tmp_path: Path) -> None:
    rows = [f"{user},1,{START_MS + user},1" for user in range(30)] + [f"x7,1,{START_MS},0"]
    report = run(tmp_path, HEADER + "\n".join(rows) + "\n")
    assert report.user_id_kind == "str"
    assert any("because 1 of 31 are no integers, such as 'x7'" in w for w in report.warnings)


def test_ids_of_number_columns_with_gaps_stay_integers(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"user": [1.0, None, 3.0], "item": [1, 2, 3], "t": [START_MS] * 3, "clicked": [1, 0, 0]}
    )
    report = import_tables(project_of(tmp_path), events=table, now_ms=NOW_MS)
    assert (report.user_id_kind, report.events.rows) == ("int", 2)


def test_a_day_is_a_local_day_also_when_the_clocks_change(tmp_path: Path) -> None:
    stamps = [
        "2025-03-29T23:30:00+01:00",
        "2025-03-30T00:30:00+01:00",
        "2025-03-30T23:30:00+02:00",
        "2025-03-30 12:00",
        "2025-03-31",
    ]
    text = HEADER + "".join(f"1,{i},{stamp},1\n" for i, stamp in enumerate(stamps))
    (tmp_path / "log.csv").write_text(text)
    project = with_events(
        project_of(tmp_path, time_zone="Europe/Paris"), time=TimeColumn(column="t", unit="iso")
    )
    report = import_tables(project, now_ms=1_750_000_000_000)
    assert report.days == {"2025-03-29": 1, "2025-03-30": 3, "2025-03-31": 1}
    entry = ImportedData.open(project.data_path).day_entry("2025-03-30")
    assert entry.end_ms - entry.start_ms == 23 * 3_600_000
    assert report.events.before_day_rows == report.events.after_day_rows == 0


def test_a_day_column_wins_and_times_outside_it_are_counted(tmp_path: Path) -> None:
    hour = 3_600_000
    rows = [
        f"1,1,{START_MS - 2 * hour},1,20220425",
        f"1,2,{START_MS},1,2022-04-25",
        f"1,3,{START_MS + 25 * hour},1,20220425",
        f"1,4,{START_MS},1,25.4.2022",
    ]
    report = run(tmp_path, "user,item,t,clicked,d\n" + "\n".join(rows) + "\n", day="d")
    assert report.days == {"2022-04-25": 3}
    events = report.events
    assert (events.before_day_rows, events.before_day_minutes) == (1, 120)
    assert (events.after_day_rows, events.after_day_minutes) == (1, 60)
    assert [rejection.reason for rejection in events.rejected] == [
        "day is neither 20220425 nor 2022-04-25"
    ]
    assert any("1 rows are timed up to 120 minutes before their date" in n for n in report.notes)
    assert ImportedData.open(tmp_path / "twotower-data").day_entry("2022-04-25").outside_rows == 2


# ---- users, items, history


def test_users_last_row_wins_and_features_are_reported(tmp_path: Path) -> None:
    users = EntitySource(
        id="id",
        display=("name",),
        features={
            "age": FeatureSettings(kind="numeric"),
            "land": FeatureSettings(kind="categorical", column="country"),
            "tags": FeatureSettings(kind="multi", separator="|"),
            "same": FeatureSettings(kind="categorical"),
            "none": FeatureSettings(kind="categorical"),
            "joined": FeatureSettings(kind="timestamp", unit="iso"),
        },
        files="users.csv",
    )
    (tmp_path / "log.csv").write_text(GOOD)
    (tmp_path / "users.csv").write_text(
        "id,age,country,tags,same,none,joined,name\n"
        "1,20,FR,a|b,x,,2020-01-01,Ann\n"
        "1,old,DE,b,x,,never,Bea\n"
        ",1,DE,b,x,,,nobody\n"
        "7,,FR,,x,,2021-01-01,Cid\n"
    )
    project = project_of(tmp_path, users=users)
    report = import_tables(project, now_ms=NOW_MS)
    found = report.users
    assert found is not None
    assert (found.rows_read, found.duplicates, found.rows, found.unlisted_in_events) == (4, 1, 2, 1)
    features = {feature.name: feature for feature in found.features}
    assert features["land"].cardinality == 2
    assert (features["tags"].cardinality, features["tags"].missing_share) == (1, 0.5)
    assert features["age"].unreadable == 1
    assert features["joined"].unreadable == 1
    assert "users: feature 'same' is constant" in report.warnings
    assert "users: feature 'none' is missing in every row" in report.warnings
    assert any(w.startswith("users: 1 rows have an ID that comes again") for w in report.warnings)
    assert "users: 1 rows are rejected: ID is empty" in report.warnings
    frame = ImportedData.open(project.data_path).users()
    assert frame is not None
    assert frame.columns == ["user_id", *users.features, "name"]
    assert frame["user_id"].to_list() == [1, 7]
    assert frame["name"].to_list() == ["Bea", "Cid"]
    assert frame["tags"].to_list() == [["b"], None]


def test_a_table_that_matches_no_event_warns(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    project = project_of(tmp_path, items=EntitySource(id="sku"))
    report = import_tables(project, items=pl.DataFrame({"sku": [900]}), now_ms=NOW_MS)
    assert "items: no ID of the events has a row; is '$.items.id' the right column?" in (
        report.warnings
    )


def test_history_lists_keep_their_order_and_seen_holds_everything_once(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    (tmp_path / "past.csv").write_text("u,liked,shown,last\n2,5 6 5,7 5,2022-04-24\n1,,,\n")
    history = HistorySource(
        files="past.csv",
        user_id="u",
        positives="liked",
        seen=("shown",),
        last_time=TimeColumn(column="last", unit="iso"),
        before="2022-04-25",
    )
    project = project_of(tmp_path, history=history)
    report = import_tables(project, now_ms=NOW_MS)
    lists = ImportedData.open(project.data_path).history()
    assert lists is not None
    assert lists.user_id.tolist() == [1, 2]
    assert lists.positives.tolist() == [5, 6, 5]
    assert lists.positive_offsets.tolist() == [0, 0, 3]
    assert lists.seen.tolist() == [7, 5, 6]
    assert lists.seen_offsets.tolist() == [0, 0, 3]
    assert lists.last_time_ms is not None
    assert lists.last_time_ms.tolist() == [0, START_MS - 86_400_000]
    assert lists.before == "2022-04-25"
    assert report.warnings == ()


def test_a_history_that_reaches_into_the_events_warns(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    history = HistorySource(
        user_id="u",
        positives="liked",
        last_time=TimeColumn(column="last", unit="ms"),
        before="2022-05-01",
    )
    past = pl.DataFrame({"u": [1], "liked": [[3, 4]], "last": [START_MS + 1]})
    report = import_tables(project_of(tmp_path, history=history), history=past, now_ms=NOW_MS)
    assert any("but the history covers the time before 2022-05-01" in w for w in report.warnings)
    assert any("histories of 1 users end after the first day" in w for w in report.warnings)


# ---- sources of every form are the same


def test_csv_gzip_parquet_and_tables_give_the_same_import(tmp_path: Path) -> None:
    frame = pl.read_csv(GOOD.encode())
    digests = set()
    writers: dict[str, Callable[[Path], object]] = {
        "log.csv": lambda path: path.write_text(GOOD),
        "log.csv.gz": lambda path: path.write_bytes(gzip.compress(GOOD.encode())),
        "log.tsv": lambda path: path.write_text(GOOD.replace(",", "\t")),
        "log.parquet": lambda path: frame.write_parquet(path),
    }
    for name, write in writers.items():
        write(tmp_path / name)
        project = with_events(project_of(tmp_path), files=name)
        digests.add(import_tables(project, now_ms=NOW_MS).digest)
    for table in (frame, frame.lazy(), frame.to_pandas(), frame.to_arrow(), pa.table(frame)):
        digests.add(import_tables(project_of(tmp_path), events=table, now_ms=NOW_MS).digest)
    assert len(digests) == 1


def test_a_list_of_globs_reads_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "log1.csv").write_text(GOOD)
    (tmp_path / "log2.csv").write_text(f"{HEADER}5,6,{START_MS},1\n")
    project = with_events(project_of(tmp_path), files=("log1.csv", "log*.csv"))
    report = import_tables(project, now_ms=NOW_MS)
    assert [file.name for file in report.events.files] == ["log1.csv", "log2.csv"]
    assert (report.events.rows_read, report.events.rows) == (3, 3)


# ---- the store


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, GOOD)
    imported = tmp_path / "twotower-data" / "imported"
    before = {path: path.stat().st_mtime_ns for path in imported.rglob("*") if path.is_file()}
    second = run(tmp_path, GOOD)
    assert (first.changed, second.changed, first.digest) == (True, False, second.digest)
    after = {path: path.stat().st_mtime_ns for path in imported.rglob("*") if path.is_file()}
    assert {p: t for p, t in before.items() if p.name != ".lock"} == {
        p: t for p, t in after.items() if p.name != ".lock"
    }


STAGED = "user,item,t,clicked,stage\n" + "".join(
    f"{row}\n"
    for row in (
        f"1,10,{START_MS},1,",
        f"2,11,{START_MS + 1000},0,shown",
        f"1,12,{START_MS + 2000},,rank",
        f"2,12,{START_MS + 3000},1,rank",
    )
)


def test_a_clicked_row_that_was_never_shown_is_rejected(tmp_path: Path) -> None:
    report = run(tmp_path, STAGED, stage="stage", shown_stages=("shown",))
    events = report.events
    assert (events.rows, events.positives, events.eliminated) == (2, 1, 1)
    (rejection,) = events.rejected
    assert rejection.reason == "stage says that it was not shown, but its outcome is 1"
    assert rejection.sample[0].line == 5
    assert "1 rows are candidates that were eliminated" in report.notes[0]


def test_a_log_of_positives_may_hold_eliminated_candidates(tmp_path: Path) -> None:
    report = run(tmp_path, STAGED, stage="stage", shown_stages=("shown",), outcome=None)
    assert (report.events.rows, report.events.positives, report.events.eliminated) == (2, 2, 2)


def test_a_log_in_which_nothing_was_shown_names_the_setting(tmp_path: Path) -> None:
    text = STAGED.replace(",1,\n", ",1,shown\n")
    assert "name the values that mean shown in $.events.shown_stages" in refusal(
        tmp_path, text, stage="stage", outcome=None
    )


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    first = run(tmp_path, GOOD)
    lines = GOOD.strip().split("\n")
    assert run(tmp_path, "\n".join([lines[0], *reversed(lines[1:])]) + "\n").digest == first.digest


def test_a_new_import_replaces_the_old_one_and_removes_it(tmp_path: Path) -> None:
    old = run(tmp_path, GOOD)
    new = run(tmp_path, GOOD + f"9,9,{START_MS},1\n")
    assert new.changed
    folders = [p.name for p in (tmp_path / "twotower-data" / "imported").iterdir() if p.is_dir()]
    assert folders == [new.digest] != [old.digest]
    assert ImportedData.open(tmp_path / "twotower-data").day_entry("2022-04-25").rows == 3


def test_a_damaged_live_import_is_repaired_by_importing_again(tmp_path: Path) -> None:
    digest = run(tmp_path, GOOD).digest
    assert digest is not None
    (tmp_path / "twotower-data" / "imported" / digest / "days" / "2022-04-25.parquet").unlink()
    again = run(tmp_path, GOOD)
    assert again.changed
    assert len(ImportedData.open(tmp_path / "twotower-data").day("2022-04-25")) == 2


def test_an_altered_live_import_is_repaired_by_importing_again(tmp_path: Path) -> None:
    digest = run(tmp_path, GOOD).digest
    assert digest is not None
    day = tmp_path / "twotower-data" / "imported" / digest / "days" / "2022-04-25.parquet"
    content = day.read_bytes()
    day.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(tmp_path, GOOD).changed
    assert len(ImportedData.open(tmp_path / "twotower-data").day("2022-04-25")) == 2


def test_a_dry_run_reports_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    report = import_tables(project_of(tmp_path), dry_run=True, now_ms=NOW_MS)
    assert (report.events.rows, report.changed, report.digest) == (2, None, None)
    assert not (tmp_path / "twotower-data").exists()


def test_a_refused_import_leaves_the_earlier_one_live(tmp_path: Path) -> None:
    digest = run(tmp_path, GOOD).digest
    with pytest.raises(DataError):
        run(tmp_path, GOOD.replace(",1\n", ",0\n"))
    assert ImportedData.open(tmp_path / "twotower-data").digest == digest


@pytest.mark.parametrize("call", range(6))
def test_a_full_disk_at_any_point_leaves_the_earlier_import_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    digest = run(tmp_path, GOOD).digest
    calls, fsync = iter(range(100)), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DataError, match=r"No space left .*; the earlier import is still live"):
            run(tmp_path, GOOD + f"9,9,{START_MS},1\n")
    data = ImportedData.open(tmp_path / "twotower-data")
    assert data.digest == digest
    assert len(data.day("2022-04-25")) == 2
    assert run(tmp_path, GOOD + f"9,9,{START_MS},1\n").changed  # nothing left behind blocks it


KILLED = """
import os, sys
from twotower.config import load_project
from twotower.data.importing import import_tables
calls, rename = [], os.rename
def die(path, target, **named):
    calls.append(target)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    return rename(path, target, **named)
os.rename = die
import_tables(load_project(sys.argv[1]), now_ms=int(sys.argv[3]))
"""


@pytest.mark.parametrize("nth_rename", [1, 2, 3])
def test_a_killed_import_leaves_the_earlier_one_live(tmp_path: Path, nth_rename: int) -> None:
    config = tmp_path / "twotower.toml"
    config.write_text(
        'config_version = 1\n[events]\nfiles = "log.csv"\nuser_id = "user"\nitem_id = "item"\n'
        'time = { column = "t", unit = "ms" }\noutcome = { column = "clicked" }\n'
    )
    digest = run(tmp_path, GOOD).digest
    (tmp_path / "log.csv").write_text(GOOD + f"9,9,{START_MS},1\n")
    command = [sys.executable, "-c", KILLED, str(config), str(nth_rename), str(NOW_MS)]
    assert subprocess.run(command, check=False).returncode == -9
    assert ImportedData.open(tmp_path / "twotower-data").digest == digest
    report = import_tables(load_project(config), now_ms=NOW_MS)
    assert report.changed
    imported = tmp_path / "twotower-data" / "imported"
    assert [path.name for path in imported.iterdir() if path.is_dir()] == [report.digest]


def test_two_imports_at_once_are_refused(tmp_path: Path) -> None:
    digest = run(tmp_path, GOOD).digest
    with (
        import_store._only_writer(tmp_path / "twotower-data" / "imported"),
        pytest.raises(DataError, match=r"another import into .* is running"),
    ):
        run(tmp_path, GOOD + f"9,9,{START_MS},1\n")
    assert ImportedData.open(tmp_path / "twotower-data").digest == digest


def test_a_newer_or_torn_import_is_refused(tmp_path: Path) -> None:
    digest = run(tmp_path, GOOD).digest
    manifest = tmp_path / "twotower-data" / "imported" / str(digest) / "import.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(CorruptArtifact, match="format version 3, this twotower reads up to 2"):
        ImportedData.open(tmp_path / "twotower-data")
    manifest.write_text(text[:50])
    with pytest.raises(CorruptArtifact, match="is unreadable"):
        ImportedData.open(tmp_path / "twotower-data")
    manifest.parent.parent.joinpath("CURRENT").write_text("../../etc")
    with pytest.raises(CorruptArtifact, match="names no version"):
        ImportedData.open(tmp_path / "twotower-data")


# ---- the examples


def test_the_facts_of_kuairand(tmp_path: Path) -> None:
    project = load_project(EXAMPLES / "kuairand" / "twotower.toml")
    project = msgspec.structs.replace(project, data_dir=str(tmp_path))
    report = import_tables(project)
    events = report.events
    assert (events.rows_read, events.duplicates, events.rows) == (228_329, 5_460, 222_869)
    assert (events.users, events.items, events.positives) == (25_156, 6_361, 100_070)
    assert (events.before_day_rows, events.before_day_minutes) == (2_071, 131)
    assert (
        "2,071 rows are timed up to 131 minutes before their date's midnight; they stay in the "
        "day that their date names"
    ) in report.notes
    assert list(report.days) == [
        *(f"2022-04-{day}" for day in range(25, 31)),
        *(f"2022-05-0{day}" for day in range(1, 9)),
    ]
    assert report.users is not None
    assert report.items is not None
    assert report.history is not None
    assert (report.users.rows, report.items.rows, report.history.rows) == (27_285, 7_583, 26_469)
    assert report.warnings == ()
    history = ImportedData.open(tmp_path).history()
    assert history is not None
    assert history.positives.tolist()[:1] == [909]


def test_the_generator_of_the_own_log_makes_the_committed_files(tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / "own-log" / "make_log.py"))["make_log"](tmp_path)
    for made in tmp_path.iterdir():
        committed = EXAMPLES / "own-log" / "data" / made.name
        unpack = gzip.decompress if made.suffix == ".gz" else bytes
        assert unpack(made.read_bytes()) == unpack(committed.read_bytes())


def test_the_own_log_is_imported(tmp_path: Path) -> None:
    project = load_project(EXAMPLES / "own-log" / "twotower.toml")
    project = msgspec.structs.replace(project, data_dir=str(tmp_path))
    report = import_tables(project)
    events = report.events
    assert (events.rows_read, events.duplicates, events.rows) == (2_015, 12, 2_000)
    assert (report.user_id_kind, report.item_id_kind) == ("str", "str")
    assert len(report.days) == 6
    items = ImportedData.open(tmp_path).items()
    assert items is not None
    assert items["title"][0] == "Smoky tomato vegan"
