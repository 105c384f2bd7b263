from __future__ import annotations

from pathlib import Path

import pytest

from twotower.config import load_project
from twotower.data.settings import FeatureSettings
from twotower.errors import ConfigError
from twotower.training.settings import NegativeSettings

MINIMAL = """
config_version = 1
[events]
files = "log.csv"
user_id = "user"
item_id = "item"
time = { column = "t", unit = "ms" }
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "twotower.toml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_project(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_minimal_project_has_defaults_and_resolved_paths(tmp_path: Path) -> None:
    project = load_project(write(tmp_path, MINIMAL))
    assert project.root == tmp_path
    assert project.data_path == tmp_path / "twotower-data"
    assert project.time_zone == "UTC"
    assert project.events.outcome is None
    assert project.users is None
    assert project.training.loss == "listwise"


def test_an_absolute_data_dir_is_kept(tmp_path: Path) -> None:
    text = MINIMAL.replace("[events]", f'data_dir = "{tmp_path / "elsewhere"}"\n[events]')
    assert load_project(write(tmp_path, text)).data_path == tmp_path / "elsewhere"


def test_an_unknown_setting_is_refused_with_path_known_names_and_suggestion(
    tmp_path: Path,
) -> None:
    message = refusal(tmp_path, MINIMAL + "[training.negatives]\nper_positiv = 3\n")
    known = ", ".join(NegativeSettings.__struct_fields__)
    assert message == (
        f"unknown setting 'per_positiv' at $.training.negatives; known: {known}; "
        "did you mean 'per_positive'?"
    )


def test_an_unknown_section_and_the_path_field_are_refused(tmp_path: Path) -> None:
    assert "unknown setting 'itmes' at $;" in refusal(tmp_path, MINIMAL + "[itmes]\nid = 'x'\n")
    text = MINIMAL.replace("[events]", "path = 'x'\n[events]")
    assert "unknown setting 'path' at $;" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (
            '{ knd = "numeric" }',
            "unknown setting 'knd' at $.users.features.age; known: kind, column, separator, "
            "max_values, transform, buckets, min_count, unit; did you mean 'kind'?",
        ),
        (
            '{ kind = "numerc" }',
            "wrong setting at $.users.features.age.kind: expected one of categorical, multi, "
            "numeric, timestamp, found 'numerc'; did you mean 'numeric'?",
        ),
        ("{}", "setting 'kind' is missing at $.users.features.age"),
        (
            '{ kind = "categorical", min_count = "2" }',
            "wrong setting at $.users.features.age.min_count: expected 'int', found 'str'",
        ),
        (
            '{ kind = "numeric", min_count = 2 }',
            "wrong setting at $.users.features.age: 'min_count' is for categorical and multi "
            "features, found kind 'numeric'",
        ),
        (
            '{ kind = "numeric", buckets = 4 }',
            "wrong setting at $.users.features.age: 'buckets' needs transform = \"quantile\"",
        ),
    ],
)
def test_a_wrong_feature_is_refused_with_its_name(
    tmp_path: Path, feature: str, expected: str
) -> None:
    text = f'{MINIMAL}[users]\nid = "user"\n[users.features]\nage = {feature}\n'
    assert refusal(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"user"', "7", "wrong setting at $.events.user_id: expected 'str', found 'int'"),
        ("item_id", "# item_id", "setting 'item_id' is missing at $.events"),
        (
            '"ms"',
            '"millis"',
            "wrong setting at $.events.time.unit: expected one of iso, ms, ns, s, us, "
            "found 'millis'",
        ),
        (
            "[events]",
            "time_zone = 'Europe/Pari'\n[events]",
            "wrong setting at $: expected an IANA time zone such as 'Europe/Paris', "
            "found 'Europe/Pari'",
        ),
        (
            "time =",
            "outcome = { column = 'c', threshold = 1, values = [1] }\ntime =",
            "wrong setting at $.events.outcome: expected one of 'threshold' and 'values', "
            "found both",
        ),
        ("config_version = 1", "", "config_version is missing; write config_version = 1"),
        (
            "config_version = 1",
            "config_version = 2\nnew_thing = 1",
            "config_version is 2, this twotower reads up to 1; upgrade twotower to use this file",
        ),
        ("[events]", "[events", "not valid TOML: "),
    ],
)
def test_each_mistake_is_one_clear_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert refusal(tmp_path, MINIMAL.replace(old, new)).startswith(expected)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; write one with: twotower init"):
        load_project(tmp_path / "none.toml")


def test_settings_that_apply_are_accepted() -> None:
    FeatureSettings(kind="multi", separator="|", max_values=3, min_count=2)
    FeatureSettings(kind="numeric", transform="quantile", buckets=4)
    FeatureSettings(kind="timestamp", unit="s")


@pytest.mark.parametrize("name", ["kuairand", "own-log"])
def test_the_examples_are_valid(name: str) -> None:
    examples = Path(__file__).parents[1] / "examples"
    assert load_project(examples / name / "twotower.toml").items is not None
