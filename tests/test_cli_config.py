"""`twotower config` and `--set` as their user meets them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from typer.testing import CliRunner

from toy import write_project
from twotower.cli import app as cli
from twotower.config import load_project
from twotower.errors import ConfigError
from twotower.overrides import FLAGS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_project(tmp_path, num_days=1, training="seed = 1")
    return tmp_path / "twotower.toml"


def call(*words: str, **variables: str) -> str:
    done = CliRunner().invoke(cli.app, words, env={"COLUMNS": "200", **variables})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def show(path: Path, *words: str, **variables: str) -> dict[str, Any]:
    text = call("config", "show", "--json", *words, "--config", str(path), **variables)
    found: dict[str, Any] = json.loads(text)
    return found


def test_check_counts_and_refuses(path: Path) -> None:
    checked = call("config", "check", "--config", str(path), TWOTOWER_TRAINING__SEED="2")
    assert "is sound" in checked
    assert "1 from outside the file" in checked
    with pytest.raises(ConfigError, match="sede"):
        call("config", "check", "--config", str(path), TWOTOWER_TRAINING__SEDE="2")


def test_show_tells_where_each_setting_came_from(path: Path) -> None:
    words = ("--set", "training.margin=0.3", "config", "show", "--origin", "--config", str(path))
    lines = call(*words, TWOTOWER_TRAINING__THREADS="2").splitlines()
    assert "training.seed = 1  # file" in lines
    assert "training.margin = 0.3  # --set" in lines
    assert "training.threads = 2  # TWOTOWER_TRAINING__THREADS" in lines
    assert FLAGS.get() == ()


def test_what_is_shown_as_effective_is_a_file_with_the_same_settings(path: Path) -> None:
    shown = path.with_name("shown.toml")
    shown.write_text(call("config", "show", "--effective", "--config", str(path)))
    expected = msgspec.structs.replace(load_project(path), path=shown)
    assert load_project(shown) == expected
    assert "# training.nothing" not in shown.read_text()
    assert "# history.last_time is not set" in shown.read_text()


def test_show_as_json(path: Path) -> None:
    given, every = show(path), show(path, "--effective")
    assert given["origins"]["training.seed"] == "file"
    assert "training.temperature" not in given["origins"]
    assert every["origins"]["training.temperature"] == "default"
    assert every["settings"]["training"]["temperature"] == 0.1
    assert every["origins"]["events.time.unit"] == "file"


@pytest.mark.parametrize(
    "file",
    ["deploy/kubernetes/twotower.toml"]
    + [f"examples/{name}/twotower.toml" for name in ("globo-news", "kuairand", "own-log")],
)
def test_the_schema_takes_what_the_loader_takes_and_knows_typing_errors(
    repository: Path, file: str
) -> None:
    schema = json.loads(call("config", "schema"))
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    given = tomllib.loads((repository / file).read_text())
    checker.validate(given)
    assert not checker.is_valid({**given, "evnets": {}})
    assert not checker.is_valid({**given, "serving": {"port": 65_536}})
    assert not checker.is_valid({**given, "serving": {"profiles": {"store": "memcached"}}})
