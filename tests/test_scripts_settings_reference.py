"""docs/settings.md is what the structs say, and they say something of every setting."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from twotower.config import ProjectSettings


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    path = repository / "scripts" / "settings_reference.py"
    spec = importlib.util.spec_from_file_location("settings_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_documented(script: ModuleType) -> None:
    undocumented = [
        f"{struct.__name__}.{setting.name}"
        for struct in script.all_structs(ProjectSettings)
        for setting in script.settings_of(struct)
        if not setting.meaning
    ]
    assert undocumented == []


def test_the_page_is_current(script: ModuleType) -> None:
    assert script.TARGET.read_text("utf-8") == script.reference(), (
        "run: python scripts/settings_reference.py"
    )


def test_it_shows_names_bounds_choices_defaults_and_places(script: ModuleType) -> None:
    page = script.reference()
    assert "| `seed` | integer from 0 | `0` | Of everything random" in page
    assert "| `loss` | `cosine_contrastive`, `listwise`" in page
    assert "`[training.base]`, `[training.full]`" in page
    assert "`[items.features.NAME]`" in page
    assert "| `config_version` | integer from 1 | required |" in page
