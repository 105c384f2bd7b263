"""Breaks a copy of the code on purpose, one line at a time, and requires that tests notice.

Each entry of the table names a file, a text that stands in it exactly once, what to write
instead, and the tests that must then fail. The same tests must pass on the untouched copy. Exit
code 1 when a mutant survives, cannot be applied, or breaks something else than its tests.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
from rich.console import Console

COPIED: Final = ("src", "tests", "scripts", "examples", "docs", "pyproject.toml", "README.md")
NOT_COPIED: Final = ("__pycache__", "twotower-data*", ".*_cache", "*.egg-info")
TIMEOUT_S: Final = 300.0
PASSED, FAILED = 0, 1  # exit codes of pytest; above are errors of collection or usage

Result = Literal["noticed", "SURVIVED", "STALE", "BROKEN"]


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fault to plant."""

    file: str
    find: str
    """Exact text that occurs once in the file."""
    replace: str
    tests: list[str]
    """Test files or single tests that must fail."""
    why: str
    """What would go wrong, unseen."""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file of mutations."""

    mutation: list[Mutation]


class Outcome(NamedTuple):
    """What came of one mutant."""

    result: Result
    detail: str
    seconds: float


class Stale(Exception):
    """The text to replace is not in the file exactly once."""


def read_table(path: Path) -> list[Mutation]:
    """Reads the table; an unknown field or a missing one is an error."""
    return msgspec.toml.decode(path.read_bytes(), type=Table).mutation


def mutate(text: str, mutation: Mutation) -> str:
    """The text of the file with the fault in it."""
    count = text.count(mutation.find)
    if count != 1:
        raise Stale(f"the text to find occurs {count} times, not once: {mutation.find!r}")
    if mutation.find == mutation.replace:
        raise Stale("the replacement is the text itself")
    return text.replace(mutation.find, mutation.replace)


def copy_repository(root: Path, target: Path) -> None:
    """Copies what the tests read; the copy shares nothing with the original."""
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, target / name)


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Runs tests inside the copy, which comes first on the import path."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *tests],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"FAILED by not ending within {TIMEOUT_S:.0f} s"
    return done.returncode, done.stdout + done.stderr


def try_mutation(root: Path, mutation: Mutation) -> Outcome:
    """Plants one fault in a copy of its own and runs the tests that must fail."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="twotower-mutant-") as folder:
        copy = Path(folder)
        copy_repository(root, copy)
        mutated = copy / mutation.file
        try:
            mutated.write_text(mutate(mutated.read_text("utf-8"), mutation), "utf-8")
        except (Stale, FileNotFoundError) as error:
            return Outcome("STALE", str(error), time.monotonic() - began)
        returncode, output = run_tests(copy, mutation.tests)
    result, detail = judge(returncode, output)
    return Outcome(result, detail, time.monotonic() - began)


def judge(returncode: int, output: str) -> tuple[Result, str]:
    """What the exit code of the tests says about a mutant."""
    if returncode == PASSED:
        return "SURVIVED", "its tests stay green"
    if returncode == FAILED:
        failed = re.search(r"^FAILED (\S+|by .*)", output, flags=re.MULTILINE)
        return "noticed", failed.group(1) if failed else ""
    return "BROKEN", output.strip()[-500:]


def check_untouched(root: Path, mutations: Sequence[Mutation]) -> Outcome:
    """Runs every named test once without a fault: a red test would notice anything."""
    began = time.monotonic()
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    with tempfile.TemporaryDirectory(prefix="twotower-untouched-") as folder:
        copy_repository(root, Path(folder))
        returncode, output = run_tests(Path(folder), tests)
    seconds = time.monotonic() - began
    if returncode == PASSED:
        return Outcome("noticed", f"{len(tests)} tests or files pass without a fault", seconds)
    return Outcome("BROKEN", f"tests fail without a fault:\n{output.strip()[-2000:]}", seconds)


def outcomes(root: Path, mutations: Sequence[Mutation], jobs: int) -> Iterator[Outcome]:
    """The outcome of the untouched copy, then of every mutant, in order."""
    with ThreadPoolExecutor(jobs) as pool:
        untouched = pool.submit(check_untouched, root, mutations)
        mutants = [pool.submit(try_mutation, root, mutation) for mutation in mutations]
        yield untouched.result()
        yield from (mutant.result() for mutant in mutants)


def main() -> int:
    """Tries every mutation, writes a line each and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--only", default="", help="only files or reasons that contain this text")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    chosen = [
        mutation
        for mutation in read_table(arguments.table)
        if arguments.only in f"{mutation.file} {mutation.why}"
    ]
    began, num_bad = time.monotonic(), 0
    names = [
        "untouched copy",
        *(f"{m.file.removeprefix('src/twotower/')}: {m.why}" for m in chosen),
    ]
    for name, outcome in zip(names, outcomes(arguments.root, chosen, arguments.jobs), strict=True):
        num_bad += outcome.result != "noticed"
        line = f"{outcome.result:<8}  {outcome.seconds:6.1f} s  {name}\n{'':20}{outcome.detail}"
        console.print(line, style=None if outcome.result == "noticed" else "red", markup=False)
    total = f"{len(chosen)} mutants, {num_bad} problems, {time.monotonic() - began:.0f} s"
    console.print(total, style="red" if num_bad else "green")
    return 1 if num_bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
