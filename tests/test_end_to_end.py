"""The walk through an own log, run as its README writes it."""

import re
import shlex
import shutil
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from twotower.cli.app import app
from twotower.serving.retriever import Retriever

OWN_LOG = Path(__file__).parents[1] / "examples" / "own-log"


def commands() -> list[list[str]]:
    """The lines of the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (OWN_LOG / "README.md").read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("walk") / "own-log"
    shutil.copytree(OWN_LOG, folder, ignore=shutil.ignore_patterns("twotower-data"))
    outputs = {"folder": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for program, *arguments in commands():
            assert program == "twotower"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, (arguments, result.output)
            outputs[" ".join(arguments)] = result.output
    return outputs


def test_every_command_of_the_readme_works(walked: dict[str, str]) -> None:
    assert "g-000002 is live" in walked["full --day 2025-03-28"]
    assert len(walked) == len(commands()) + 1


def test_a_log_without_history_publishes_its_first_night_first(walked: dict[str, str]) -> None:
    assert "g-000001 is live" in walked["full --day 2025-03-27"]


def test_titles_are_shown_and_strangers_are_answered(walked: dict[str, str]) -> None:
    stranger = next(output for command, output in walked.items() if "nobody" in command)
    assert "unknown_user" in stranger
    retriever = Retriever.open(Path(walked["folder"]) / "twotower-data")
    answer = retriever.retrieve("u0017", 5)
    assert len(answer.candidates) == 5
    assert all(candidate.display.get("title") for candidate in answer.candidates)
    assert not {c.item_id for c in answer.candidates} & {c.item_id for c in answer.recent}


def test_an_answer_is_json_for_programs(walked: dict[str, str]) -> None:
    config = ["-c", f"{walked['folder']}/twotower.toml"]
    shown = CliRunner().invoke(app, ["retrieve", "--user", "u0017", "-k", "3", "--json", *config])
    answer = msgspec.json.decode(shown.stdout)
    assert answer["generation"] == "g-000002"
    assert [candidate["rank"] for candidate in answer["candidates"]] == [1, 2, 3]
