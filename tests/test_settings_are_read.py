"""A setting that no code reads is a promise that nobody keeps."""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from twotower.config import Project

SOURCE = Path(__file__).parents[1] / "src" / "twotower"
READ_BEFORE_DECODING = {"config_version"}  # decides whether the rest can be understood


def structs_in(annotation: object) -> Iterator[type[msgspec.Struct]]:
    """The structs that an annotation names, however deep inside unions and containers."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from structs_in(argument)
    if isinstance(annotation, types.UnionType):
        for member in annotation.__args__:
            yield from structs_in(member)


def all_structs(root: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """The struct and everything that a configuration can hold below it."""
    found: list[type[msgspec.Struct]] = [root]
    for struct in found:
        for annotation in typing.get_type_hints(struct, include_extras=False).values():
            found += [inner for inner in structs_in(annotation) if inner not in found]
    return found


def names_read() -> set[str]:
    """Attribute names that code reads; the settings' own modules do not count."""
    return {
        node.attr
        for path in SOURCE.rglob("*.py")
        if path.name != "settings.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


STRUCTS = all_structs(Project)


def test_every_part_has_settings() -> None:
    modules = {struct.__module__ for struct in STRUCTS}
    parts = {path.parent.name for path in SOURCE.glob("*/settings.py")}
    assert {f"twotower.{part}.settings" for part in parts} - modules == set()


def test_the_version_is_read() -> None:
    text = (SOURCE / "config.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in text for name in READ_BEFORE_DECODING)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_setting_is_read(struct: type[msgspec.Struct]) -> None:
    read = names_read() | READ_BEFORE_DECODING
    assert [name for name in struct.__struct_fields__ if name not in read] == []
