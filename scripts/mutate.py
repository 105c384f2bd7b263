"""Breaks a copy of the code on purpose, one line at a time, and requires that tests notice.

Each entry of the table names a file, a text that stands in it exactly once, what to write
instead, and the tests that must then fail. The same tests must pass on the untouched copy;
`--after-tests` takes that from a run of all of them just before. Exit code 1 when a mutant
survives, cannot be applied, or breaks something else than its tests.

This process imports the big packages once, and neither the project nor its tests; every mutant
is a fork of it, so it starts warm and yet imports the faulty code anew. A run that has loaded
anything of the project from outside its copy is BROKEN, whatever its tests say.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import gc
import importlib
import importlib.util
import os
import py_compile
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, NamedTuple, NoReturn

import msgspec
from rich.console import Console

COPIED: Final = (
    *("src", "tests", "scripts", "examples", "docs", "deploy", "pyproject.toml", "README.md"),
)
NOT_COPIED: Final = ("__pycache__", "twotower-data*", ".*_cache", "*.egg-info")
WARM: Final = "torch torch._dynamo onnx faiss fastapi uvicorn hypothesis typer"
"""Packages that start no thread when they are imported: a thread would not survive a fork."""

ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
UNTOUCHED_LIMIT_S: Final = 300.0
LEAST_LIMIT_S: Final = 60.0
UNKNOWN_S: Final = 10.0
"""What tests count for that were not run without a fault."""
LIMIT_FACTOR: Final = 10.0
"""A mutant may take that many times as long as its tests take without a fault."""

PASSED, FAILED = 0, 1  # exit codes of pytest; above are errors of collection or usage
NOT_OF_THE_COPY: Final = 70

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

    @property
    def name(self) -> str:
        """Where and why, in a line."""
        return f"{self.file.removeprefix('src/twotower/')}: {self.why}"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file of mutations."""

    mutation: list[Mutation]


class Outcome(NamedTuple):
    """What came of one mutant."""

    result: Result
    detail: str
    seconds: float


class Job(NamedTuple):
    """Tests to run once, with a fault in the code or without."""

    tests: tuple[str, ...]
    limit_s: float
    mutation: Mutation | None = None


class Run(NamedTuple):
    """A child at work: `pidfd` becomes readable when it ends."""

    job: Job
    copy: Path
    original: str
    """The file without the fault."""
    pid: int
    pidfd: int
    began: float


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


def copy_repository(root: Path, target: Path) -> Path:
    """Copies what the tests read; the copy shares nothing with the original.

    Its compiled files are valid for one content only, so a fault is never run from an old one.
    """
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.exists():
            target.mkdir(exist_ok=True)
            shutil.copy2(source, target / name)
    by_content = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(target, quiet=2, invalidation_mode=by_content)
    return target


def warm_up(packages: Iterable[str]) -> None:
    """Imports what every child would import, where it is installed, and starts no thread."""
    os.environ.update(
        dict.fromkeys(ONE_THREAD, "1")
    )  # before numpy, which counts the cores when it is imported
    for package in ("pytest", *packages):
        if importlib.util.find_spec(package.partition(".")[0]) is not None:
            importlib.import_module(package)
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise SystemExit(f"importing {', '.join(packages)} started {len(threads) - 1} threads")
    gc.freeze()  # the children share these pages


def start(root: Path, copy: Path, job: Job) -> Run:
    """Plants the fault and forks the child that runs the tests."""
    original = ""
    if job.mutation is not None:
        mutated = copy / job.mutation.file
        original = mutated.read_text("utf-8")
        mutated.write_text(mutate(original, job.mutation), "utf-8")
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        run_tests(root.resolve(), copy.resolve(), job.tests)
    return Run(job, copy, original, pid, os.pidfd_open(pid), began)


def run_tests(root: Path, copy: Path, tests: Sequence[str]) -> NoReturn:
    """Be a process that runs tests of the copy, which comes first on the import path."""
    code = NOT_OF_THE_COPY
    try:
        os.setsid()
        with (copy / "output").open("wb") as output, open(os.devnull, "rb") as nothing:
            for stream, descriptor in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(stream.fileno(), descriptor)
        os.chdir(copy)
        sys.path[:] = [str(copy / "src"), *(path for path in sys.path if not is_in(path, root))]
        os.environ.update(PYTHONPATH=str(copy / "src"), PYTHONDONTWRITEBYTECODE="1")
        sys.dont_write_bytecode = True
        sys.modules["__main__"] = sys.modules["__mp_main__"] = ModuleType("__main__")
        code = run_pytest(["-x", "-q", "--no-header", "--color=no", *tests], copy)
        if foreign := [name for name, path in loaded_files() if is_in(path, root)]:
            code = NOT_OF_THE_COPY
            print(f"imported from outside the copy: {', '.join(foreign)}", flush=True)  # noqa: T201
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def run_pytest(words: list[str], copy: Path) -> int:
    """Pytest in this process; its files lie beside the copy, its caches nowhere."""
    import pytest

    words += ["-p", "no:cacheprovider", f"--basetemp={copy}-files"]
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins are here already
    code = pytest.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def loaded_files() -> Iterator[tuple[str, str]]:
    """Name and file of every module that came from a file."""
    for name, module in list(sys.modules.items()):
        if file := getattr(module, "__file__", None):
            yield name, file


def is_in(path: str, root: Path) -> bool:
    """Whether the path is one of the repository's own folders, or in one."""
    return any(Path(path).is_relative_to(root / name) for name in COPIED)


def finish(run: Run, *, is_late: bool) -> Outcome:
    """Ends the child with all that it started, takes the fault out and judges."""
    if is_late:
        os.kill(run.pid, signal.SIGKILL)
    _, status = os.waitpid(run.pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)  # servers that a failed test left behind
    os.close(run.pidfd)
    seconds = time.monotonic() - run.began
    if run.job.mutation is not None:
        (run.copy / run.job.mutation.file).write_text(run.original, "utf-8")
    shutil.rmtree(f"{run.copy}-files", ignore_errors=True)
    if is_late:
        late = f"FAILED by not ending within {run.job.limit_s:.0f} s"
        return Outcome(*judge(FAILED, late), seconds)
    output = (run.copy / "output").read_text("utf-8", errors="replace")
    return Outcome(*judge(os.waitstatus_to_exitcode(status), output), seconds)


def judge(returncode: int, output: str) -> tuple[Result, str]:
    """What the exit code of the tests says about a mutant."""
    if returncode == PASSED:
        return "SURVIVED", "its tests stay green"
    if returncode == FAILED:
        failed = re.search(r"^FAILED (by .*|\S+)", output, flags=re.MULTILINE)
        return "noticed", failed.group(1) if failed else output.strip()[-500:]
    return "BROKEN", f"exit code {returncode}: {output.strip()[-500:]}"


def outcomes(root: Path, jobs: Sequence[Job], copies: Sequence[Path]) -> Iterator[Outcome]:
    """The outcome of every job, in order, as many at a time as there are copies."""
    done: dict[int, Outcome] = {}
    running: dict[int, Run] = {}
    free, waiting, following = list(copies), list(enumerate(jobs)), 0
    while following < len(jobs):
        while free and waiting:
            number, job = waiting.pop(0)
            try:
                running[number] = start(root, free[-1], job)
                free.pop()
            except (Stale, FileNotFoundError) as error:
                done[number] = Outcome("STALE", str(error), 0.0)
        for number, is_late in ended(running):
            run = running.pop(number)
            done[number] = finish(run, is_late=is_late)
            free.append(run.copy)
        while following in done:
            yield done.pop(following)
            following += 1


def ended(running: dict[int, Run]) -> list[tuple[int, bool]]:
    """Waits until a child ends or is late; the numbers of those, and whether late."""
    if not running:
        return []
    deadlines = {number: run.began + run.job.limit_s for number, run in running.items()}
    wait_s = max(0.0, min(deadlines.values()) - time.monotonic())
    ready = select.select([run.pidfd for run in running.values()], [], [], wait_s)[0]
    now = time.monotonic()
    return [
        (number, run.pidfd not in ready)
        for number, run in running.items()
        if run.pidfd in ready or deadlines[number] <= now
    ]


def without_fault(mutations: Sequence[Mutation]) -> list[Job]:
    """Every named test once, a job a file: a red test would notice anything."""
    files: dict[str, set[str]] = {}
    for test in (test for mutation in mutations for test in mutation.tests):
        files.setdefault(test.partition("::")[0], set()).add(test)
    return [Job(tuple(sorted(tests)), UNTOUCHED_LIMIT_S) for _, tests in sorted(files.items())]


def check_untouched(
    root: Path, mutations: Sequence[Mutation], copies: Sequence[Path]
) -> tuple[Outcome, dict[str, float]]:
    """Runs the tests without a fault; the seconds that each file of them takes."""
    began, jobs = time.monotonic(), without_fault(mutations)
    results = list(outcomes(root, jobs, copies))
    files = [job.tests[0].partition("::")[0] for job in jobs]
    took = {file: outcome.seconds for file, outcome in zip(files, results, strict=True)}
    red = [
        f"{' '.join(job.tests)}: {outcome.detail}"
        for job, outcome in zip(jobs, results, strict=True)
        if outcome.result != "SURVIVED"
    ]
    seconds = time.monotonic() - began
    if red:
        return Outcome("BROKEN", "tests fail without a fault:\n" + "\n".join(red), seconds), took
    return Outcome("noticed", f"{len(jobs)} files of tests pass without a fault", seconds), took


def with_fault(mutations: Sequence[Mutation], took: dict[str, float]) -> list[Job]:
    """A job for every mutant; a mutant that hangs is ended in proportion to its tests."""
    jobs = []
    for mutation in mutations:
        files = {test.partition("::")[0] for test in mutation.tests}
        usual_s = sum(took.get(file, UNKNOWN_S) for file in files)
        limit_s = max(LEAST_LIMIT_S, LIMIT_FACTOR * usual_s)
        jobs.append(Job(tuple(mutation.tests), limit_s, mutation))
    return jobs


def report(console: Console, name: str, outcome: Outcome) -> bool:
    """Writes a line about an outcome; returns whether it is a problem."""
    line = f"{outcome.result:<8}  {outcome.seconds:6.1f} s  {name}\n{'':20}{outcome.detail}"
    is_problem = outcome.result != "noticed"
    console.print(line, style="red" if is_problem else None, markup=False)
    return is_problem


def try_all(
    root: Path, mutations: Sequence[Mutation], jobs: int, console: Console, *, after_tests: bool
) -> int:
    """Tries every mutation, writes a line each; the number of problems."""
    num_problems, took = 0, dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="twotower-mutants-") as folder:
        copies = [copy_repository(root, Path(folder) / str(number)) for number in range(jobs)]
        if not after_tests:
            untouched, took = check_untouched(root, mutations, copies)
            num_problems = int(report(console, "untouched copy", untouched))
        results = outcomes(root, with_fault(mutations, took), copies)
        for mutation, outcome in zip(mutations, results, strict=True):
            num_problems += report(console, mutation.name, outcome)
    return num_problems


def main() -> int:
    """Tries the chosen mutations and writes a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--only", default="", help="only files or reasons that contain this text")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time")
    parser.add_argument(
        "--after-tests", action="store_true", help="all tests passed just now, on this very code"
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--warm", default=WARM, help="packages imported before the first fork")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    chosen = [m for m in read_table(arguments.table) if arguments.only in f"{m.file} {m.why}"]
    warm_up(arguments.warm.split())
    num_problems = try_all(
        arguments.root, chosen, arguments.jobs, console, after_tests=arguments.after_tests
    )
    total = f"{len(chosen)} mutants, {num_problems} problems, {time.monotonic() - began:.0f} s"
    console.print(total, style="red" if num_problems else "green")
    return 1 if num_problems or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
