"""Settings from the environment and from flags: file < environment < flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from toy import write_project
from twotower.config import Project, effective_settings, layered_settings, load_project
from twotower.errors import ConfigError
from twotower.overrides import FLAGS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_project(tmp_path, num_days=1, history=False, training="seed = 1\nmargin = 0.1")
    return tmp_path / "twotower.toml"


def load(path: Path, flags: Sequence[str] = ()) -> Project:
    token = FLAGS.set(flags)
    try:
        return load_project(path)
    finally:
        FLAGS.reset(token)


def test_flags_win_over_the_environment_and_that_over_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(path).training.seed == 1
    monkeypatch.setenv("TWOTOWER_TRAINING__SEED", "2")
    assert load(path).training.seed == 2
    assert load(path, ["training.seed=3"]).training.seed == 3
    assert load(path, ["training.seed=3", "training.seed=4"]).training.seed == 4
    assert load(path).training.margin == 0.1


@pytest.mark.parametrize(
    ("variable", "text", "name", "expected"),
    [
        ("TWOTOWER_NAME", "42", "name", "42"),
        ("TWOTOWER_DATA_DIR", "./elsewhere", "data_dir", "./elsewhere"),
        ("TWOTOWER_TRAINING__LOSS", "pointwise", "training.loss", "pointwise"),
        ("TWOTOWER_TRAINING__NEGATIVES__IN_BATCH", "false", "training.negatives.in_batch", False),
        ("TWOTOWER_MODEL__HIDDEN", "[8, 4]", "model.hidden", (8, 4)),
        ("TWOTOWER_EVENTS__FILES", '["a.csv", "b.csv"]', "events.files", ("a.csv", "b.csv")),
        ("TWOTOWER_EVENTS__FILES", "a.csv", "events.files", "a.csv"),
        ("TWOTOWER_EVENTS__STAGE", "stage", "events.stage", "stage"),
        ("TWOTOWER_TRAINING__FULL__BATCH_SIZE", "7", "training.full.batch_size", 7),
    ],
)
def test_any_setting_can_come_from_the_environment(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    text: str,
    name: str,
    expected: object,
) -> None:
    monkeypatch.setenv(variable, text)
    value: object = load(path)
    for part in name.split("."):
        value = getattr(value, part)
    assert value == expected
    assert layered_settings(path).origins[tuple(name.split("."))] == variable


def test_a_free_name_is_found_whatever_its_case(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOTOWER_ITEMS__FEATURES__TAGS__MAX_VALUES", "3")
    assert load(path, ["users.features.zip.kind=categorical"]).items is not None
    project = load(path, ["users.features.zip.kind=categorical"])
    assert project.items is not None
    assert project.users is not None
    assert project.items.features["tags"].max_values == 3
    assert project.users.features["zip"].kind == "categorical"


def test_a_table_that_the_file_lacks_can_be_given_whole(path: Path) -> None:
    flag = 'history={"user_id": "user", "positives": "liked", "before": "2024-03-01"}'
    history = load(path, [flag]).history
    assert history is not None
    assert history.positives == "liked"


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("TWOTOWER_TRAINING__SEDE", "3", r"TWOTOWER_TRAINING__SEDE: unknown setting 'sede' at "
         r"\$\.training; known: .*; did you mean 'seed'\?"),
        ("TWOTOWER_TRAINNG__SEED", "3", "did you mean 'training'"),
        ("TWOTOWER_TRAINING__SEED", "x", "TWOTOWER_TRAINING__SEED: expected a value of"),
        ("TWOTOWER_TRAINING__SEED", "-1", r"with TWOTOWER_TRAINING__SEED: .*\$\.training\.seed"),
        ("TWOTOWER_TRAINING__LOSS", "listwis", "did you mean 'listwise'"),
        ("TWOTOWER_TRAINING__SEED__X", "1", r"unknown setting 'x' at \$\.training\.seed"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_is_refused_and_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_variables_of_other_programs_are_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TWOTOWER_PORT", "TWOTOWER_SERVICE_HOST", "TWOTOWER_PORT_8080_TCP"):
        monkeypatch.setenv(variable, "tcp://10.0.0.1:8080")
    origins = layered_settings(path).origins
    assert load(path).training.seed == 1
    assert set(origins.values()) == {"file"}


@pytest.mark.parametrize("flag", ["training.seed", "seed=1", "training.sed=1", "=1"])
def test_a_mistaken_flag_is_refused(path: Path, flag: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load(path, [flag])


def test_effective_settings_hold_every_default(path: Path) -> None:
    values = effective_settings(load(path))
    assert values["training"]["temperature"] == 0.1
    assert values["history"] is None
    assert "path" not in values
