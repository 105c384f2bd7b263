"""What the documents say is there, is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from twotower.cli.app import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def tree_paths() -> Iterator[str]:
    """The paths of README's annotated tree."""
    section = read(ROOT / "README.md").split("## What is where")[1]
    folder = ""
    for line in section.split("```")[1].strip().splitlines():
        entry = line.split()[0]
        if line.startswith("  "):
            yield folder + entry
        else:
            folder = entry
            yield folder


@pytest.mark.parametrize("path", list(tree_paths()))
def test_the_annotated_tree_names_what_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_named_files_exist() -> None:
    named = re.findall(
        r"`((?:src|tests|scripts|docs|examples|benchmarks)/[^`\s*]+)`",
        "\n".join(map(read, DOCUMENTS)),
    )
    assert [path for path in sorted(set(named)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(document))
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_commands_in_the_documents_exist() -> None:
    commands = getattr(get_command(app), "commands", {})
    text = "\n".join(map(read, DOCUMENTS))
    named = set(re.findall(r"(?:^|`)twotower ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    assert sorted(named - set(commands)) == []


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), flags=re.MULTILINE))
    named = set(
        re.findall(r"(?:^|`)make ([a-z-]+)", "\n".join(map(read, DOCUMENTS)), flags=re.MULTILINE)
    )
    assert sorted(named - targets) == []
