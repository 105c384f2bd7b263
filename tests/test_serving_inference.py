"""The Open Inference Protocol: the same answers under other names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving_project import UNKNOWN_USER, USERS, RunningServer, running_server, write_project
from test_serving_retriever import publish_live
from tiny_checkpoint import tiny_checkpoint
from twotower.data.ids import Id
from twotower.serving.retriever import Retriever

MODEL = "/v2/models/twotower"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inference")
    publish_live(folder / "twotower-data", tiny_checkpoint())
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running_server(write_project(folder)) as running:
        yield running


def tensor(name: str, data: list[Any], datatype: str = "BYTES", *width: int) -> dict[str, Any]:
    return {"name": name, "shape": [len(data), *width], "datatype": datatype, "data": data}


def infer(server: RunningServer, *inputs: Any, path: str = MODEL, **more: Any) -> Any:
    reply = server.ask("POST", f"{path}/infer", {"inputs": inputs, **more})
    assert reply.status == 200, reply.body
    return reply.json()


def outputs(answer: Any) -> dict[str, Any]:
    return {output["name"]: np.array(output["data"]).reshape(output["shape"])
            for output in answer["outputs"]}  # fmt: skip


def test_health_and_metadata_say_what_there_is(server: RunningServer) -> None:
    assert server.ask("GET", "/v2/health/live").json() == {"live": True}
    assert server.ask("GET", "/v2/health/ready").json() == {"ready": True}
    assert server.ask("GET", "/v2").json()["name"] == "twotower"
    for path in (MODEL, f"{MODEL}/versions/g-000001"):
        found = server.ask("GET", path).json()
        assert (found["name"], found["versions"]) == ("twotower", ["g-000001"])
        kinds = {given["name"]: (given["datatype"], given["shape"]) for given in found["inputs"]}
        assert kinds == {
            "user_id": ("INT64", [-1]), "city": ("BYTES", [-1]), "age": ("FP64", [-1]),
            "tags": ("BYTES", [-1, -1]), "joined": ("BYTES", [-1]),
        }  # fmt: skip
        assert server.ask("GET", f"{path}/ready").json() == {"name": "twotower", "ready": True}
    for path in ("/v2/models/other", f"{MODEL}/versions/g-000002", f"{MODEL}/versions/..%2f"):
        for rest in ("", "/ready"):
            assert server.ask("GET", path + rest).status == 404
        body = {"inputs": [tensor("user_id", ["1"])]}
        assert server.ask("POST", f"{path}/infer", body).status == 404


@pytest.mark.parametrize("version", ["", "/versions/g-000001"])
def test_answers_are_those_of_retrieve(folder: Path, server: RunningServer, version: str) -> None:
    retriever = Retriever.open(folder / "twotower-data")
    users: list[Id] = [*USERS, UNKNOWN_USER]
    cities = ["Oslo", "Atlantis"] * 6 + ["Lima"]
    ages = [float(20 + n) for n in range(13)]
    answer = infer(
        server,
        tensor("user_id", [str(user) for user in users]),
        tensor("city", cities),
        tensor("age", ages, "FP64"),
        path=MODEL + version,
        parameters={"k": 5},
        id="mine",
    )
    assert (answer["model_version"], answer["id"]) == ("g-000001", "mine")
    found = outputs(answer)
    assert found["item_ids"].shape == found["scores"].shape == (13, 5)
    for row, (user, city, age) in enumerate(zip(users, cities, ages, strict=True)):
        expected = retriever.retrieve(user, 5, features={"city": city, "age": age}).candidates
        assert found["item_ids"][row].tolist() == [str(c.item_id) for c in expected]
        np.testing.assert_array_equal(
            found["scores"][row].astype(np.float32),
            np.array([c.score for c in expected], np.float32),
        )
    assert found["num_items"].tolist() == [5] * 13


def test_rows_of_different_lengths_are_filled_up(server: RunningServer) -> None:
    found = outputs(infer(server, tensor("user_id", [USERS[3], UNKNOWN_USER], "INT64"),
                          parameters={"k": 1000}))  # fmt: skip
    lengths = found["num_items"].tolist()
    assert lengths[0] < lengths[1] == 57
    assert set(found["item_ids"][0, lengths[0] :]) == {""}
    assert set(found["item_ids"][0, : lengths[0]]) != {""}
    whole = infer(server, tensor("user_id", [USERS[3]]), parameters={"k": 99, "include_seen": True})
    assert outputs(whole)["num_items"].tolist() == [57]


def test_lists_nested_data_and_wanted_outputs(folder: Path, server: RunningServer) -> None:
    retriever = Retriever.open(folder / "twotower-data")
    labels = {"name": "tags", "datatype": "BYTES", "shape": [2, 2], "data": [["a", "b"], ["c", ""]]}
    flat = labels | {"data": ["a", "b", "c", ""]}
    users = tensor("user_id", [["697"], ["696"]], "BYTES", 1)
    nested = infer(server, users, labels, outputs=[{"name": "item_ids"}])
    assert infer(server, users, flat, outputs=[{"name": "item_ids"}]) == nested
    assert [output["name"] for output in nested["outputs"]] == ["item_ids"]
    for row, (user, tags) in enumerate([(697, ["a", "b"]), (696, ["c"])]):
        expected = retriever.retrieve(user, 20, features={"tags": tags}).candidates
        ids = outputs(nested)["item_ids"][row].tolist()
        assert [i for i in ids if i] == [str(c.item_id) for c in expected]


def test_what_does_not_fit_is_refused_with_its_place(server: RunningServer) -> None:
    users = tensor("user_id", ["697", "696"])
    for inputs, path in (
        ([tensor("city", ["Oslo"])], "$.inputs"),
        ([users, tensor("city", ["Oslo"])], "$.inputs"),
        ([tensor("user_id", ["1"] * 257)], "$.inputs"),
        ([users | {"shape": [3]}], "$.inputs[0].data"),
        ([users | {"datatype": "UINT8"}], "$.inputs[0].datatype"),
        ([users, tensor("ciity", ["a", "b"])], "$"),
        ([tensor("user_id", ["no number"])], "$"),
        ([tensor("user_id", [{}])], "$"),
        ([], "$.inputs"),
    ):
        reply = server.ask("POST", f"{MODEL}/infer", {"inputs": inputs})
        assert reply.status == 422, reply.body
        assert reply.json()["errors"][0]["path"] == path
