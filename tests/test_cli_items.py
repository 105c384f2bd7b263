"""`twotower items` as its user meets it, and `retrieve` after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from test_cli_generations import PROJECT, call, call_json
from test_serving_retriever import publish_live
from tiny_checkpoint import tiny_checkpoint
from twotower.errors import ConfigError, DataError, NotReady


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "twotower.toml").write_text(PROJECT)
    publish_live(tmp_path / "twotower-data", tiny_checkpoint())
    return tmp_path


def test_items_are_added_withdrawn_restored_and_listed(project: Path) -> None:
    best = call_json(project, "retrieve", "--user", "697", "-k", "1")["candidates"][0]["item_id"]
    file = project / "new.ndjson"
    items = [{"item_id": 9_000_000, "features": {"genre": "genre 1"}}, {"item_id": best}]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    added = call_json(project, "items", "add", str(file))
    assert added == {"number": 1, "added": [9_000_000], "known": [best]}
    assert "1 items added, 1 are in the live generation" in call(project, "items", "add", str(file))
    call(project, "items", "withdraw", str(best), "7", "--reason", "[legal] notice")
    text = call(project, "items", "list")
    assert "genre genre 1" in text
    assert "[legal] notice" in text
    answer = call_json(project, "retrieve", "--user", "697", "-k", "100", "--include-seen")
    found = [candidate["item_id"] for candidate in answer["candidates"]]
    assert 9_000_000 in found
    assert best not in found
    assert answer["items_number"] == 3
    restored = call_json(project, "items", "restore", str(best))
    assert [entry["item_id"] for entry in restored["withdrawn"]] == [7]
    assert call_json(project, "items", "list")["number"] == 4
    answer = call_json(project, "retrieve", "--user", "697", "-k", "1")
    assert answer["candidates"][0]["item_id"] == best
    assert "items 4" in call(project, "retrieve", "--user", "697")


def test_what_cannot_be_added_is_said(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        call(project, "items", "add", "missing.ndjson")
    file = project / "bad.ndjson"
    file.write_text('{"item_id": 1, "features": {"gemre": "x"}}')
    with pytest.raises(ConfigError, match="did you mean 'genre'"):
        call(project, "items", "add", str(file))
    with pytest.raises(DataError, match="found 'abc'"):
        call(project, "items", "withdraw", "abc")
    assert call_json(project, "items", "list") == {"number": 0, "added": [], "withdrawn": []}


def test_nothing_is_live_yet(tmp_path: Path) -> None:
    (tmp_path / "twotower.toml").write_text(PROJECT)
    with pytest.raises(NotReady):
        call(tmp_path, "items", "withdraw", "1")
