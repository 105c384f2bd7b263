"""A year of nights over users and items that come and go."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from test_training_full_update import own_group_shares
from twotower.checkpoint import Checkpoint
from twotower.config import load_project
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.training.base_model import train_base_model
from twotower.training.full_update import run_full_update

pytestmark = pytest.mark.slow

NUM_DAYS, IMPRESSIONS, NUM_GROUPS = 365, 400, 4
NUM_ACTIVE = 60
EVICT_AFTER_DAYS = 10
SEEN_LIMIT, FORGET_AFTER_DAYS = 30, 20
FIRST_DAY = date(2024, 1, 1)

CONFIG = f"""
config_version = 1
[events]
files = "events.csv"
user_id = "user"
item_id = "item"
time = {{ column = "time", unit = "s" }}
outcome = {{ column = "clicked" }}
[model]
vector_dim = 16
id_dim = 16
history_dim = 8
hidden = []
history_length = 10
[training]
threads = 1
accumulator_decay = 0.95
[training.admission]
evict_after_days = {EVICT_AFTER_DAYS}
[training.user_state]
seen_limit = {SEEN_LIMIT}
forget_after_days = {FORGET_AFTER_DAYS}
[training.full]
batch_size = 64
uniform = 32
dense_learning_rate = 0.01
table_learning_rate = 0.2
"""


def active(day: int) -> npt.NDArray[np.int64]:
    """The users, and the items, that are there on a day: one new a day, the oldest leaves."""
    return np.arange(day, day + NUM_ACTIVE)


def write_year(folder: Path) -> Path:
    """A checkerboard, as in `toy.py`, whose users and items are other ones every two months."""
    rng = np.random.default_rng(0)
    lines = ["user,item,time,clicked"]
    for day in range(NUM_DAYS):
        start_s = 1_704_067_200 + day * 86_400
        users = rng.choice(active(day), IMPRESSIONS)
        items = rng.choice(active(day), IMPRESSIONS)
        chance = np.where(users % NUM_GROUPS == items % NUM_GROUPS, 0.9, 0.03)
        clicked = (rng.random(IMPRESSIONS) < chance).astype(int)
        seconds = start_s + np.sort(rng.choice(86_400, IMPRESSIONS, replace=False))
        lines += map("{},{},{},{}".format, users, items, seconds, clicked)
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "twotower.toml").write_text(CONFIG)
    return folder / "twotower.toml"


def quality(state: Checkpoint, day: int) -> float:
    """Share of the ten best of the day's items that are of the user's own group."""
    users = state.users.positions(active(day)[:-5])
    items = state.items.positions(active(day)[:-5])
    return own_group_shares(state, users[users >= 0], items[items >= 0])


def test_a_year_keeps_the_tables_small_and_the_quality_steady(tmp_path: Path) -> None:
    project = load_project(write_year(tmp_path))
    import_tables(project)
    data = ImportedData.open(project.data_path)
    model, training = project.model, project.training
    state = train_base_model(data, users=None, items=None, model=model, training=training)
    sizes, shares, evicted, kept, forgotten = [], {}, 0, [], 0
    for day in range(NUM_DAYS):
        through = (FIRST_DAY + timedelta(days=day)).isoformat()
        state = run_full_update(state, data, through, model=model, training=training)
        evicted += state.meta.turnover.evicted_users
        sizes.append((state.users.num_rows, state.items.num_rows))
        forgotten += state.meta.turnover.forgotten_users
        kept.append(state.user_state.seen.lengths())
        if day % 5 == 0:
            shares[day] = quality(state, day)
    assert len(state.users) > NUM_DAYS
    assert np.max(sizes) <= NUM_ACTIVE + EVICT_AFTER_DAYS + 6
    assert np.min(sizes[30:]) >= NUM_ACTIVE / 2
    assert evicted >= len(state.users) - (state.users.rows > 0).sum() - NUM_ACTIVE / 4
    assert max(map(np.max, kept)) == SEEN_LIMIT
    assert max((lengths > 0).sum() for lengths in kept) <= NUM_ACTIVE + FORGET_AFTER_DAYS + 6
    assert forgotten >= len(state.users) - NUM_ACTIVE - FORGET_AFTER_DAYS - 6
    early = np.mean([share for day, share in shares.items() if 60 <= day < 120])
    late = np.mean([share for day, share in shares.items() if day >= NUM_DAYS - 60])
    assert late > 0.5
    assert late > early - 0.05
    accumulator = state.model.tables["history"].accumulator
    assert float(accumulator.max()) < 10
