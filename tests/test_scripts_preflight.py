"""What `make demo` says before it installs anything."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "preflight.py"


@pytest.fixture(scope="module")
def preflight() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preflight", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add_torch(venv: Path, version: str) -> None:
    (venv / f"lib/python3.11/site-packages/torch-{version}.dist-info").mkdir(parents=True)


def test_is_readable_by_old_interpreters() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_this_machine_passes_a_line_a_check(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--venv", str(tmp_path), "--make-version", "4.3"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("preflight ok ") for line in lines)


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_names_a_python_that_fits(
    preflight: ModuleType, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "interpreter_version", lambda python: version)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: name == "python3.12")
    with pytest.raises(preflight.Missing, match=r"3\.10 to 3\.13 is needed.*PYTHON=python3\.12"):
        preflight.check_python("python3")


def test_a_moved_environment_is_told(preflight: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(preflight.Missing, match=r"does not start.*rm -rf"):
        preflight.interpreter_version(str(tmp_path / "bin" / "python"))


def test_names_the_system_package_of_venv(
    preflight: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(preflight.Missing, match="apt-get install python3-venv"):
        preflight.check_venv(str(tmp_path / "venv"))


def test_a_suitable_torch_is_kept(preflight: ModuleType, tmp_path: Path) -> None:
    pyproject = str(ROOT / "pyproject.toml")
    assert "torch is not there" in preflight.check_torch(str(tmp_path), pyproject)
    add_torch(tmp_path / "old", "2.1.0")
    assert "will be replaced" in preflight.check_torch(str(tmp_path / "old"), pyproject)
    add_torch(tmp_path / "good", "2.13.1+cpu")
    assert "2.13.1+cpu is there and is kept" in preflight.check_torch(
        str(tmp_path / "good"), pyproject
    )


def test_too_little_disk_is_told(
    preflight: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 2 * preflight.GIB
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: FreeDisk(free))
    with pytest.raises(preflight.Missing, match=r"2\.0 GiB of disk are free here, 3 GiB"):
        preflight.check_disk(str(tmp_path), str(tmp_path / "venv"))


class FreeDisk:
    """What shutil.disk_usage answers, as far as it is read."""

    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.parametrize(("version", "fits"), [("3.81", True), ("4.4.1", True), ("", False)])
def test_make_must_be_gnu_make(preflight: ModuleType, version: str, fits: bool) -> None:
    if fits:
        assert version in preflight.check_make(version)
    else:
        with pytest.raises(preflight.Missing, match="GNU make"):
            preflight.check_make(version)
