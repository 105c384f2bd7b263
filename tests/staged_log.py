"""A log whose stage column is the only signal.

Items come in pairs, 2k and 2k + 1, with the same features, and everybody clicks both halves of a
pair alike. What differs is what ranking eliminated: for users of even number the even halves, for
the others the odd ones. A second stage, `filter`, does the reverse and says nothing of interest.
"""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path

import numpy as np

from toy import FIRST_DAY, NUM_ITEMS, NUM_USERS, write_project
from twotower.config import Project, load_project

__all__ = ["DAYS", "write_staged_project"]

DAYS = ("2024-03-01", "2024-03-02", "2024-03-03")
_HEADER = ("user", "item", "time", "clicked", "stage")
_Row = tuple[str, int, int, object, str]


def write_staged_project(
    folder: Path, *, eliminated: bool = True, training: str = "", history: bool = False
) -> Project:
    """Write the log; without `eliminated` the same impressions and no candidates."""
    write_project(folder, history=history, training=training)
    config = (folder / "twotower.toml").read_text()
    config = config.replace('item_id = "item"\n', 'item_id = "item"\nstage = "stage"\n')
    (folder / "twotower.toml").write_text(config)
    rows = _rows(np.random.default_rng(5))
    kept = [row for row in rows if eliminated or not row[-1]]
    _write(folder / "events.csv", _HEADER, kept)
    items = [(n, f"Title {n}", f"t{n // 2 % 7}|t{n // 2 % 3}") for n in range(NUM_ITEMS)]
    _write(folder / "items.csv", ("item", "title", "tags"), items)
    return load_project(folder / "twotower.toml")


def _rows(rng: np.random.Generator) -> list[_Row]:
    rows: list[_Row] = []
    for day in range(len(DAYS)):
        start = int((FIRST_DAY + timedelta(days=day)).timestamp())
        for second in np.sort(rng.choice(80_000, 1000, replace=False)):
            user, time = int(rng.integers(NUM_USERS)), start + int(second)
            shown, clicked = int(rng.integers(NUM_ITEMS)), int(rng.random() < 0.6)
            rows.append((f"u{user}", shown, time, clicked, ""))
            for stage, parity in (("rank", user % 2), ("filter", 1 - user % 2)):
                pairs = rng.choice(NUM_ITEMS // 2, 3, replace=False)
                rows += [(f"u{user}", int(2 * p + parity), time, "", stage) for p in pairs]
    return rows


def _write(path: Path, header: tuple[str, ...], rows: list) -> None:  # type: ignore[type-arg]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
