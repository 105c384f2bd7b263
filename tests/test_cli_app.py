"""The command line as a user meets it: help, version, mistakes, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from twotower.cli import app as cli
from twotower.errors import CorruptArtifact, DataError, GateRefused

HEAVY = {"torch", "polars", "onnxruntime", "faiss", "numpy", "scipy", "implicit", "pyarrow"}


def run_twotower(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from twotower.cli.app import main; sys.argv[0] = 'twotower'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def command_paths(
    command: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command with the words that call it, and its help text."""
    children = getattr(command, "commands", {})
    if path and not children:
        yield path, getattr(command, "help", None) or ""
    for name, child in children.items():
        yield from command_paths(child, (*path, name))


def test_help_loads_no_engine() -> None:
    code = (
        "import sys, twotower.cli.app as cli\n"
        "try:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Usage: " in done.stdout
    assert HEAVY.isdisjoint(done.stderr.split())


def test_version_names_the_package() -> None:
    done = run_twotower("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "twotower")


def test_a_mistyped_command_gets_a_suggestion() -> None:
    paths = [path for path, _ in command_paths(get_command(cli.app))]
    assert paths, "no command is registered"
    done = run_twotower(paths[0][0] + "x")
    assert done.returncode == 2
    assert f"Did you mean '{paths[0][0]}'" in " ".join(done.stderr.split())


def completions(*words: str) -> list[str]:
    """What the shell is offered for the last word."""
    variables = {
        "_TWOTOWER_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("twotower", *words)),
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; sys.argv = ['twotower']; from twotower.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def test_the_shell_completes_commands_and_options() -> None:
    assert completions("gen") == ["generations"]
    assert {"activate", "roll-back", "diff"} <= set(completions("generations", ""))
    assert completions("full", "--dr") == ["--dry-run"]


WITHOUT_JSON = {"config schema", "init"}


def test_every_command_writes_json_and_takes_a_project_file() -> None:
    without = {
        " ".join(path): sorted({"--json", "--config"} - options)
        for path, options in command_options(get_command(cli.app))
        if not {"--json", "--config"} <= options and " ".join(path) not in WITHOUT_JSON
    }
    assert without == {}


def command_options(
    command: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Every command that is no group, with its options."""
    children = getattr(command, "commands", {})
    if path and not children:
        yield path, {option for parameter in command.params for option in parameter.opts}
    for name, child in children.items():
        yield from command_options(child, (*path, name))


def test_every_command_has_a_runnable_example() -> None:
    without = [
        " ".join(path)
        for path, text in command_paths(get_command(cli.app))
        if f"Example: twotower {' '.join(path)}" not in " ".join(text.split())
    ]
    assert without == []


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(DataError("bad\nrow"), 1), (GateRefused("no"), 3), (CorruptArtifact("torn [x]"), 4)],
)
def test_a_refusal_is_one_line_and_an_exit_code(
    error: Exception,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    assert stopped.value.code == exit_code
    assert captured.out == ""
    assert captured.err.splitlines() == ["error: " + " ".join(str(error).split("\n"))]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(28, "No space left on device", "a/b"), "at a/b, found: No space left on device;"),
        (PermissionError(13, "Permission denied"), "freely, found: Permission denied;"),
        (OSError("80 requested and 8 written"), "freely, found: 80 requested and 8 written;"),
    ],
)
def test_what_the_system_refuses_is_one_line_too(
    error: OSError,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert line.startswith("error: expected to read and write freely")
    assert found in line
    assert "what was live is unchanged" in line


def test_a_reader_who_leaves_is_no_error_message() -> None:
    command = f"{sys.executable} -c 'from twotower.cli.app import main; main()' --help | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_quiet_shows_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    small = typer.Typer()
    small.callback()(cli.global_options)

    @small.command()
    def work() -> None:
        logging.getLogger("twotower").info("began rows=%d", 3)

    line = json.loads(CliRunner().invoke(small, ["work"]).stderr)
    assert (line["level"], line["event"], line["rows"]) == ("info", "began", 3)
    assert CliRunner().invoke(small, ["-q", "work"]).stderr == ""
