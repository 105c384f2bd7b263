"""Gowalla as two projects: one to choose on, one to report."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from twotower.config import Project, load_project
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.replay import ReplayedLog
from twotower.replay.nights import ReplayedDay

__all__ = ["Split", "open_split"]

DAY: Final = "2020-01-02"
"""The day of the pairs that are asked about; the history that is trained lies before it."""
HELD_OUT: Final = 0.1
CONFIG: Final = """
config_version = 1
name = "Gowalla"
data_dir = "{folder}/data"
time_zone = "UTC"

[events]
files = "asked.parquet"
user_id = "user_id"
item_id = "item_id"
time = {{ column = "time", unit = "s" }}

[items]
files = "items.parquet"
id = "item_id"

[history]
files = "known.parquet"
user_id = "user_id"
positives = "items"
before = "{day}"
"""


class Split(NamedTuple):
    """What is trained, and what is asked."""

    project: Project
    log: ReplayedLog
    day: ReplayedDay


def open_split(source: Path, work: Path, name: str) -> Split:
    """Return the split `validation` (a tenth of each user's train pairs, asked) or `test`.

    Args:
        source: holds `train.txt.gz` and `test.txt.gz`.
        work: where the import is kept.
        name: of the split.
    """
    folder = (work / name).resolve()
    if not (folder / "twotower.toml").exists():
        write_split(source, folder, name)
    project = load_project(folder / "twotower.toml")
    if not (project.data_path / "imported").is_dir():
        import_tables(project)
    log = ReplayedLog(ImportedData.open(project.data_path))
    (day,) = log.days(DAY, DAY)
    return Split(project, log, day)


def write_split(source: Path, folder: Path, name: str) -> None:
    """Write the tables and the configuration of a split."""
    train, test = read_pairs(source / "train.txt.gz"), read_pairs(source / "test.txt.gz")
    known, asked = train, test
    if name == "validation":
        is_asked = held_out(train[:, 0])
        known, asked = train[~is_asked], train[is_asked]
    folder.mkdir(parents=True, exist_ok=True)
    seconds = int(np.datetime64(DAY, "s").astype(np.int64))
    pl.DataFrame({"user_id": asked[:, 0], "item_id": asked[:, 1]}).with_columns(
        time=pl.lit(seconds)
    ).write_parquet(folder / "asked.parquet")
    num_items = 1 + int(max(train[:, 1].max(), test[:, 1].max()))
    pl.DataFrame({"item_id": np.arange(num_items)}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_id": known[:, 0], "item": known[:, 1].astype(str)}).group_by(
        "user_id", maintain_order=True
    ).agg(items=pl.col("item").str.join(" ")).write_parquet(folder / "known.parquet")
    (folder / "twotower.toml").write_text(CONFIG.format(folder=folder, day=DAY), encoding="utf-8")


def held_out(users: Any) -> Any:
    """Return which pairs are held out, `bool[n]`: a tenth of each user's, rounded up.

    As in the test, so every user is asked about; of pairs drawn from all, most are those of users
    with long lists, and settings that suit those alone would be chosen.
    """
    drawn = np.random.default_rng(0).random(len(users))
    order = np.lexsort([drawn, users])
    _, first, counts = np.unique(users[order], return_index=True, return_counts=True)
    rank = np.arange(len(users)) - np.repeat(first, counts)
    is_held_out = np.zeros(len(users), np.bool_)
    is_held_out[order] = rank < np.repeat(np.ceil(HELD_OUT * counts), counts)
    return is_held_out


def read_pairs(path: Path) -> Any:
    """Return `int64[n, 2]`, user and item, in the order of the file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lists = [np.array(line.split(), np.int64) for line in file if line.strip()]
    users = np.repeat([row[0] for row in lists], [len(row) - 1 for row in lists])
    return np.stack([users, np.concatenate([row[1:] for row in lists])], axis=1)
