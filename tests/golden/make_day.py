"""Writes deltas and items of the day over a golden generation, to be read by every later version.

python tests/golden/make_day.py tests/golden/day-1
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from twotower.publishing.day_items import add_items, withdraw_items
from twotower.publishing.delta import DeltaSpan
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.item_register import DayItem
from twotower.serving.day import DayFollower, LogReader, NoCounts
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings

BASE = "checkpoint-4"
USERS = ("u1", "u5", "new-user", "nobody")


def main() -> None:
    """Makes two deltas, two new items and a withdrawn one, and notes what is answered."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        data_path = Path(name) / "data"
        shutil.copytree(Path(__file__).parent / BASE / "data", data_path)
        make(data_path)
        retriever = as_served(data_path)
        answers = {
            user: [(c.item_id, round(c.score, 6)) for c in retriever.retrieve(user, k=8).candidates]
            for user in USERS
        }
        folder.mkdir()
        for kind in ("deltas", "overlays"):
            shutil.copytree(data_path / kind, folder / kind)
    for lock in folder.rglob(".*lock"):
        lock.unlink()
    expected = {"base": BASE, "delta": 2, "items_number": 2, "answers": answers}
    content = msgspec.json.format(msgspec.json.encode(expected), indent=1)
    (folder / "answers.json").write_bytes(content + b"\n")


def make(data_path: Path) -> None:
    """Write the deltas and the items."""
    retriever = Retriever.open(data_path)
    rng = np.random.default_rng(1)
    id_dim = retriever.encoder.user_id_embeddings.shape[1]
    dim = retriever.base.manifest.vector_dim
    known = np.sort(retriever.encoder.items.ids)
    sides = (
        (np.array([b"u1", b"u2"]), known[:1]),
        (np.array([b"new-user", b"u1"]), np.sort(np.concatenate([known[1:2], [800]]))),
    )
    for number, (users, items) in enumerate(sides):
        sizes = ((len(users), id_dim), (len(items), id_dim), (len(items), dim))
        rows = [rng.normal(size=size).astype(np.float32) for size in sizes]
        span = DeltaSpan(
            first_offset=number, through_offset=number + 1, newest_event_time_ms=1_709_400_000_000
        )
        delta = DeltaRows(users, rows[0], items, rows[1], rows[2])
        write_delta(data_path, retriever.base, delta, span, now_ms=1_709_400_000_000)
    items_of_day = [DayItem(item_id=900 + n, features={"tags": f"t{n}"}) for n in range(2)]
    add_items(data_path, retriever.base, retriever.encoder, items_of_day)
    best = retriever.retrieve("u5", k=1).candidates[0].item_id
    withdraw_items(data_path, retriever.encoder, [best], "golden")


def as_served(data_path: Path) -> Retriever:
    """What a server would answer from."""
    reader = LogReader(data_path, ("click",))
    day = DayFollower(data_path, ServingSettings(), NoCounts(), reader)
    retriever = day.catch_up(Retriever.open(data_path))
    assert not day.problems, day.problems
    return retriever


if __name__ == "__main__":
    main()
