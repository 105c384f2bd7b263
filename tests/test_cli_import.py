from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from twotower.cli.app import app
from twotower.cli.import_ import RECIPES, project_template
from twotower.config import load_project
from twotower.errors import ConfigError, NotReady, TwoTowerError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
EXAMPLES, BENCHMARKS = ROOT / "examples", ROOT / "benchmarks"
OWN_LOG = EXAMPLES / "own-log"
RECIPE_FILES = list((ROOT / "src" / "twotower" / "cli" / "recipes").glob("*.toml"))


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OWN_LOG, tmp_path / "own-log", ignore=shutil.ignore_patterns("twotower-data"))
    monkeypatch.chdir(tmp_path / "own-log")
    return tmp_path / "own-log"


def test_init_writes_a_file_that_is_valid_and_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote twotower.toml" in invoke("init")
    assert load_project("twotower.toml").events.time.unit == "iso"
    Path("twotower.toml").write_text("mine")
    with pytest.raises(ConfigError, match="is there already and is unchanged; replace it with"):
        invoke("init")
    assert Path("twotower.toml").read_text() == "mine"
    invoke("init", "--force")
    invoke("init", "other.toml")
    assert Path("other.toml").read_text() == Path("twotower.toml").read_text()


@pytest.mark.parametrize(("recipe", "example"), [("feed", "kuairand"), ("news", "globo-news")])
def test_a_recipe_is_what_its_figures_were_measured_with(
    tmp_path: Path, recipe: str, example: str
) -> None:
    invoke("init", str(tmp_path / "twotower.toml"), "--recipe", recipe)
    written = load_project(tmp_path / "twotower.toml")
    measured = load_project(EXAMPLES / example / "twotower.toml")
    assert written.model == measured.model
    assert written.training == msgspec.structs.replace(measured.training, threads=0)
    changed = {"popularity": "live", "publish_every_s": 300.0} if recipe == "news" else {}
    assert written.increment == msgspec.structs.replace(measured.increment, **changed)
    assert written.join == measured.join
    assert written.publishing == measured.publishing


def test_the_recipe_for_lists_is_that_of_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rows = importlib.import_module("quality_rows")
    invoke("init", str(tmp_path / "twotower.toml"), "--recipe", "ids")
    written = load_project(tmp_path / "twotower.toml")
    assert (written.model, written.training) == (rows.MODEL, rows.TRAINING)


def test_a_recipe_keeps_the_other_sections_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "twotower.toml"
    with pytest.raises(ConfigError, match="found 'fed'; did you mean 'feed'"):
        invoke("init", str(path), "--recipe", "fed")
    assert not path.exists()
    assert set(RECIPES) == {file.stem for file in RECIPE_FILES}
    plain = tomllib.loads(project_template(None))
    for recipe in RECIPES:
        written = tomllib.loads(project_template(recipe))
        assert {name: written[name] for name in ("events", "runtime")} == {
            name: plain[name] for name in ("events", "runtime")
        }
        assert project_template(recipe).count("# A live day:") == 1


def test_every_setting_that_the_template_shows_exists(tmp_path: Path) -> None:
    path = tmp_path / "twotower.toml"
    invoke("init", str(path))
    shown = re.sub(r"^# (?=[a-z_]+ = |\[)", "", path.read_text(), flags=re.MULTILINE)
    shown = re.sub(r"^#$", "", shown, flags=re.MULTILINE)
    once = []
    seen: set[str] = set()
    for line in shown.split("\n"):
        if line.startswith("["):
            seen.clear()
        name = line.split(" = ")[0]
        if not line.startswith("#") and name and name in seen:
            continue  # the alternatives of `outcome`
        seen.add(name)
        once.append(line)
    path.write_text("\n".join(once))
    loaded = load_project(path)
    assert loaded.users is not None
    assert loaded.items is not None
    assert loaded.history is not None
    assert set(loaded.users.features) == {"country", "age", "joined"}
    assert loaded.events.stage == "stage"


def test_import_prints_a_report_and_says_when_nothing_changed(project: Path) -> None:
    dry = invoke("import", "--dry-run")
    assert "dry run: nothing was written" in dry
    assert not (project / "twotower-data").exists()
    first = invoke("import")
    for expected in (
        "2,015",
        "2025-03-30",
        "120 users (str IDs), 80 items (str IDs), 642 positives (32.1%)",
        "published",
        "rejected 3 rows: user ID is empty",
        "data/events-1.csv.gz:104",
        "note: 12 rows repeat an earlier event and are dropped",
        "warning: 3 events are rejected: user ID is empty",
        "imported into",
    ):
        assert expected in first
    assert "nothing changed: this data is live already" in invoke("import")


def test_import_as_json_is_the_report(project: Path) -> None:
    report = json.loads(invoke("import", "--config", "twotower.toml", "--json"))
    assert report["changed"] is True
    assert report["events"]["rejected"][0]["sample"][0]["line"] == 104
    assert report["days"]["2025-03-27"] == 350


def test_errors_reach_the_command_line(project: Path) -> None:
    text = Path("twotower.toml").read_text()
    Path("twotower.toml").write_text(text.replace('user_id = "reader"', 'user_id = "raeder"'))
    with pytest.raises(TwoTowerError, match=r"no column 'raeder', .*; did you mean 'reader'"):
        invoke("import")
    with pytest.raises(ConfigError, match="no such file; write one with: twotower init"):
        invoke("import", "-c", "none.toml")


def test_without_polars_the_extra_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.data.days.find_spec", lambda name: None)
    with pytest.raises(NotReady, match=r"importing needs the package 'polars'"):
        invoke("import")
