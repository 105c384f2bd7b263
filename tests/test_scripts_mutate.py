"""The runner of mutants, and that its table fits the code as it stands."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import threading
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
    return run_table(small_repository(folder, *entries))


def run_table(table: Path, *words: str) -> tuple[int, str]:
    folder = table.parent
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(table), "--root", str(folder), "--warm", "", *words],
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


def test_each_mutant_runs_its_own_fault_and_no_other(tmp_path: Path) -> None:
    """Faults of one length, planted in one second by forks of one process, stay apart."""
    returncode, output = run_mutants(
        tmp_path,
        ENTRY.format(find="2 * x", replace="3 * x", why="triples"),
        ENTRY.format(find="2 * x", replace="x * 2", why="the same"),
        ENTRY.format(find="2 * x", replace="4 * x", why="quadruples"),
        ENTRY.format(find="+ 0", replace="+ 1", why="one more"),
        ENTRY.format(find="+ 0", replace="+ x", why="x more"),
    )
    results = [line.split()[0] for line in output.splitlines() if "src/small.py:" in line]
    assert results == ["noticed", "SURVIVED", "noticed", "noticed", "noticed"], output
    assert returncode == 1


def test_a_red_test_on_the_untouched_copy_is_broken(tmp_path: Path) -> None:
    entry = ENTRY.format(find="2 * x + 0", replace="3 * x", why="triples")
    table = small_repository(tmp_path, entry)
    (tmp_path / "src" / "small.py").write_text(
        "def double(x: int) -> int:\n    return 2 * x + 0 - 1\n"
    )
    returncode, output = run_table(table)
    assert returncode == 1
    assert output.startswith("BROKEN"), output
    assert "tests fail without a fault" in output


def test_after_the_tests_nothing_is_run_without_a_fault(tmp_path: Path) -> None:
    table = small_repository(tmp_path, ENTRY.format(find="2 * x", replace="3 * x", why="triples"))
    returncode, output = run_table(table, "--after-tests")
    assert returncode == 0, output
    assert "1 mutants, 0 problems" in output
    assert "untouched" not in output


def test_code_from_outside_the_copy_is_broken(tmp_path: Path) -> None:
    """Else a mutant would be tried on the code without its fault, and survive or pass at random."""
    table = small_repository(tmp_path, ENTRY.format(find="2 * x", replace="3 * x", why="triples"))
    (tmp_path / "tests" / "test_small.py").write_text(
        f"import sys\n\nsys.path.insert(0, {str(tmp_path / 'src')!r})\n"
        "from small import double\n\n\ndef test_double() -> None:\n    assert double(3) == 6\n"
    )
    returncode, output = run_table(table)
    assert returncode == 1
    assert "imported from outside the copy: small" in output
    assert "2 problems" in output


def test_a_mutant_that_hangs_is_ended_with_what_it_started(
    mutate: ModuleType, tmp_path: Path
) -> None:
    small_repository(tmp_path)
    (tmp_path / "tests" / "test_small.py").write_text(
        "import subprocess, sys, time\n\n"
        "def test_double() -> None:\n"
        "    code = 'import time; time.sleep(600)'\n"
        "    child = subprocess.Popen([sys.executable, '-c', code])\n"
        f"    with open({str(tmp_path / 'pid')!r}, 'w') as file:\n"
        "        file.write(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    copy = mutate.copy_repository(tmp_path, tmp_path / "copy")
    job = mutate.Job(("tests/test_small.py",), limit_s=3.0)
    (outcome,) = mutate.outcomes(tmp_path, [job], [copy])
    assert outcome.result == "noticed"
    assert outcome.detail == "by not ending within 3 s"
    assert has_ended(int((tmp_path / "pid").read_text()))


def has_ended(pid: int) -> bool:
    """Whether the process is gone within seconds, or waits only to be collected."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        threading.Event().wait(0.01)
    return False


def test_the_warm_packages_start_no_thread(mutate: ModuleType) -> None:
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import mutate; "
    code += "mutate.warm_up(mutate.WARM.split()); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any(name.startswith("twotower") for name in done.stdout.split())


def test_the_table_fits_the_code(mutate: ModuleType) -> None:
    mutations = mutate.read_table(TABLE)
    assert mutations
    for mutation in mutations:
        mutate.mutate((ROOT / mutation.file).read_text("utf-8"), mutation)
        for test in mutation.tests:
            name, *within = test.partition("[")[0].split("::")  # without the id of a parameter
            found: object = importlib.import_module(Path(name).stem)
            for part in within:  # a class may inherit its tests
                found = getattr(found, part)
