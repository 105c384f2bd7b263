"""Publishes and roll-backs under load: nothing failed, nothing mixed, nothing backwards.

Item IDs and scores of an answer tell which generation and which delta made it, so the checker needs
nothing but the answer, and sees a mix that nobody admits to.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from serving_project import (
    USERS,
    Reply,
    RunningServer,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from test_serving_day import DayClient, day_references, publish_delta, wait_delta
from test_serving_server import K, References, load
from twotower.publishing.delta import delta_folder
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever

NUM_FULL = 4
NUM_DELTAS = 4
"""Of each generation."""


class Staged:
    """Generations and their deltas, written; a delta is published by moving it to its place."""

    def __init__(self, folder: Path) -> None:
        self.data_path = folder / "twotower-data"
        self.store = ModelStore(self.data_path)
        self.names = [publish_marked(self.store, number) for number in range(1, NUM_FULL + 1)]
        self._aside = folder / "staged"
        self._aside.mkdir()
        (self._aside / "generations").symlink_to(self.store.root)
        aside = ModelStore(self._aside)
        self.references: References = {}
        for name in self.names:
            deltas = [publish_delta(aside, name, number + 1) for number in range(NUM_DELTAS)]
            self.references |= day_references(Retriever.open(self.data_path, name), deltas)
            delta_folder(self.data_path, name).mkdir(parents=True)

    def publish_delta(self, name: str, number: int) -> None:
        file = f"d-{number:06d}"
        (delta_folder(self._aside, name) / file).rename(delta_folder(self.data_path, name) / file)


@pytest.mark.slow
def test_twenty_publishes_and_two_roll_backs_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = Staged(tmp_path)
    store, names = staged.store, staged.names
    store.activate(names[0], force=True)
    monkeypatch.setattr("test_serving_server.Client", DayClient)
    with running_server(write_project(tmp_path), workers=2) as server:
        with load(server, staged.references, 4) as clients:
            for full, name in enumerate(names):
                sequence = store.activate(name, force=True).sequence
                for number in range(1, NUM_DELTAS + 1):
                    staged.publish_delta(name, number)
                    if number % 2:  # every other one does not wait for the one before
                        server.wait_ready(sequence)
                        wait_delta(server, number)
                if full % 2:
                    back = store.roll_back()
                    server.wait_ready(back.sequence)
                    assert back.generation == names[full - 1]
                    wait_delta(server, NUM_DELTAS)
            seen = [len(client.answers) for client in clients]
            eventually(
                lambda: all(len(c.answers) > n + 5 for c, n in zip(clients, seen, strict=True))
            )
        assert [failure for client in clients for failure in client.failed][:3] == []
        assert sum(client.num_backwards for client in clients) == 0
        answered = {name for client in clients for name, _ in client.answers}
        assert {name.partition("/")[0] for name in answered} == set(names)
        assert {f"{name}/{NUM_DELTAS}" for name in names} <= answered
        assert server.metric("twotower_publish_total", result="corrupt") == 0
        assert server.metric("twotower_publish_total", result="rejected") == 0
        assert server.metric("twotower_publish_total", result="rolled_back") == 2


def test_the_checker_sees_a_tower_of_one_and_an_index_of_another(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "twotower-data")
    names = [publish_marked(store, number) for number in (1, 2)]
    one, other = (Retriever.open(tmp_path / "twotower-data", name) for name in names)
    references = day_references(one, [])
    client = DayClient(RunningServer(None, "http://127.0.0.1:1"), references, 0)  # type: ignore[arg-type]

    def check(retriever: Retriever) -> int:
        """How many answers of a retriever that calls itself the first are found out."""
        before = len(client.failed)
        for user in USERS:
            found = retriever.retrieve(user, K).candidates
            candidates = [
                {"item_id": c.item_id, "score": float(np.float32(c.score))} for c in found
            ]
            answer = {
                "generation": names[0],
                "sequence": 1,
                "delta": None,
                "candidates": candidates,
            }
            reply = Reply(200, {"x-generation": names[0]}, json.dumps(answer).encode())
            client._check(user, reply)
        return len(client.failed) - before

    mixed = one._with(dataclasses.replace(one.overlay, index=other.index), None)
    assert check(one) == 0
    assert check(mixed) == len(USERS)
    assert all("mixed" in failure for failure in client.failed)
