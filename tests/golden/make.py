"""Writes what this version of twotower leaves on the disk, small, to be read by every later one.

Run it once when a format changes, before the change is released, and commit the new folder:

    python tests/golden/make.py tests/golden/checkpoint-4
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy import Size, write_project
from twotower.config import load_project
from twotower.data.importing import import_tables
from twotower.nightly import run_night
from twotower.publishing.retention import pin
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever

USERS = ("u1", "u5", "nobody")
SMALL = """
[publishing.gates]
confidence = 0.5
holdout_positives = 0
max_mean_cosine = 1.0
max_mean_user_cosine = 1.0
min_recognised = 0.0
max_coverage_loss = 1.0
max_recall_loss = 1.0
max_window_loss = 1.0
"""


def main() -> None:
    """Makes a project of two days with the first one live, and notes what it answers."""
    folder = Path(sys.argv[1])
    write_project(folder, num_days=2, size=Size(users=16, items=24, impressions=120))
    config = folder / "twotower.toml"
    config.write_text(config.read_text() + SMALL)
    project = load_project(config)
    import_tables(project)
    live = run_night(project, "2024-03-01").generation
    store = ModelStore(project.data_path)
    pin(store, live, "golden")
    shutil.rmtree(store.root / "g-000001")
    retriever = Retriever.open(project.data_path)
    answers = {
        user: [(c.item_id, round(c.score, 6)) for c in retriever.retrieve(user, k=5).candidates]
        for user in USERS
    }
    expected = {"live": live, "pinned": live, "answers": answers}
    (folder / "expected.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(expected), indent=1) + b"\n"
    )
    for name in ("events.csv", "users.csv", "items.csv", "history.csv"):
        (folder / name).unlink()
    shutil.rmtree(project.data_path / "work")
    for lock in project.data_path.rglob(".*lock"):
        lock.unlink()
    project.data_path.rename(folder / "data")


if __name__ == "__main__":
    main()
