"""The runner of mutants, and that its table fits the code as it stands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "mutate.py"
TABLE = ROOT / "tests" / "mutations.toml"
ENTRY = """
[[mutation]]
file = "src/small.py"
find = "{find}"
replace = "{replace}"
tests = ["tests/test_small.py"]
why = "{why}"
"""


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # its structs resolve their annotations there
    spec.loader.exec_module(module)
    return module


def small_repository(folder: Path, *entries: str) -> Path:
    (folder / "src").mkdir()
    (folder / "tests").mkdir()
    (folder / "src" / "small.py").write_text("def double(x: int) -> int:\n    return 2 * x + 0\n")
    (folder / "tests" / "test_small.py").write_text(
        "from small import double\n\ndef test_double() -> None:\n    assert double(3) == 6\n"
    )
    table = folder / "mutations.toml"
    table.write_text("".join(entries))
    return table


def run_mutants(folder: Path, *entries: str) -> tuple[int, str]:
    table = small_repository(folder, *entries)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(table), "--root", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_a_noticed_mutant_passes(tmp_path: Path) -> None:
    entry = ENTRY.format(find="2 * x", replace="3 * x", why="triples")
    returncode, output = run_mutants(tmp_path, entry)
    assert returncode == 0, output
    assert "small.py: triples" in output
    assert "tests/test_small.py::test_double" in output


def test_survivors_stale_and_broken_mutants_fail(tmp_path: Path) -> None:
    returncode, output = run_mutants(
        tmp_path,
        ENTRY.format(find="+ 0", replace="- 0", why="no effect"),
        ENTRY.format(find="x", replace="y", why="not once"),
        ENTRY.format(find="return", replace="returns", why="no Python"),
    )
    assert returncode == 1
    results = [line.split()[0] for line in output.splitlines() if "src/small.py:" in line]
    assert results == ["SURVIVED", "STALE", "BROKEN"]
    assert "3 mutants, 3 problems" in output


def test_the_table_fits_the_code(mutate: ModuleType) -> None:
    mutations = mutate.read_table(TABLE)
    assert mutations
    for mutation in mutations:
        mutate.mutate((ROOT / mutation.file).read_text("utf-8"), mutation)
        for test in mutation.tests:
            name, _, function = test.partition("::")
            named = function.partition("[")[0]  # without the id of a parameter
            assert f"def {named}" in (ROOT / name).read_text("utf-8"), test
