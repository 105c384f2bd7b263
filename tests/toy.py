"""A small log whose right answer is known: users of a group click items of their group.

A checkerboard: group `g` of four holds the users and items with `number % 4 == g`. Nothing else in
the log tells anything, so a model that learned it ranks a user's own group first.
"""

from __future__ import annotations

import csv
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twotower.config import Project, load_project

NUM_USERS, NUM_ITEMS, NUM_GROUPS = 60, 80, 4
FIRST_DAY = datetime(2024, 3, 1, tzinfo=timezone.utc)

CONFIG = """
config_version = 1
name = "toy"

[events]
files = "events.csv"
user_id = "user"
item_id = "item"
time = { column = "time", unit = "s" }
outcome = { column = "clicked" }

[users]
files = "users.csv"
id = "user"
[users.features]
age = { kind = "numeric" }
country = { kind = "categorical" }

[items]
files = "items.csv"
id = "item"
display = ["title"]
[items.features]
tags = { kind = "multi", separator = "|" }
HISTORY
[model]
vector_dim = 16
id_dim = 16
history_dim = 8
feature_dim = 4
hidden = []
history_length = 10

[training]
threads = 1
TRAINING
[training.full]
batch_size = 64
uniform = 32
dense_learning_rate = 0.02
table_learning_rate = 0.2
[training.base]
epochs = 2
batch_size = 64
uniform = 32
dense_learning_rate = 0.02
table_learning_rate = 0.2
"""

HISTORY = """
[history]
files = "history.csv"
user_id = "user"
positives = "liked"
seen = ["liked"]
before = "2024-03-01"
"""


class Size(NamedTuple):
    """How much of everything; impressions are those of one day."""

    users: int = NUM_USERS
    items: int = NUM_ITEMS
    impressions: int = 1200


SIZE = Size()


def write_project(
    folder: Path,
    *,
    num_days: int = 3,
    history: bool = True,
    training: str = "",
    seed: int = 0,
    size: Size = SIZE,
) -> Project:
    """Write the log's files and its TOML into `folder` and return the project."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    events = _events(rng, num_days, size)
    _write(folder / "events.csv", ["user", "item", "time", "clicked"], events)
    users = [(f"u{n}", 20 + n % 40, ["fr", "de"][n % 2]) for n in range(size.users)]
    _write(folder / "users.csv", ["user", "age", "country"], users)
    items = [(n, f"Title {n}", f"t{n % 7}|t{n % 3}") for n in range(size.items)]
    _write(folder / "items.csv", ["item", "title", "tags"], items)
    if history:
        _write(folder / "history.csv", ["user", "liked"], _history(rng, size))
    config = CONFIG.replace("HISTORY", HISTORY if history else "").replace("TRAINING", training)
    (folder / "twotower.toml").write_text(config)
    return load_project(folder / "twotower.toml")


def group_of(user: object) -> int:
    """Return the group of a user ID (`u17`) or an item ID (`17`)."""
    return int(str(user).removeprefix("u")) % NUM_GROUPS


def _events(rng: np.random.Generator, num_days: int, size: Size) -> list[tuple[str, int, int, int]]:
    rows = []
    for day in range(num_days):
        start = FIRST_DAY + timedelta(days=day)
        for second in np.sort(rng.choice(86_000, size.impressions, replace=False)):
            user, item = int(rng.integers(size.users)), int(rng.integers(size.items))
            chance = 0.9 if user % NUM_GROUPS == item % NUM_GROUPS else 0.03
            clicked = int(rng.random() < chance)
            rows.append((f"u{user}", item, int(start.timestamp()) + int(second), clicked))
    return rows


def _history(rng: np.random.Generator, size: Size) -> list[tuple[str, str]]:
    rows = []
    for user in range(size.users):
        own = np.arange(user % NUM_GROUPS, size.items, NUM_GROUPS)
        liked = rng.choice(own, 6, replace=False)
        rows.append((f"u{user}", " ".join(map(str, liked))))
    return rows


def _write(path: Path, header: list[str], rows: list[tuple[object, ...]] | list) -> None:  # type: ignore[type-arg]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
