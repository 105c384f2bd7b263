"""Writes docs/settings.md from the settings' structs: names, types, defaults, what they mean.

python scripts/settings_reference.py            write it
python scripts/settings_reference.py --check    exit code 1 if it is not current
"""

from __future__ import annotations

import argparse
import ast
import inspect as python_inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import inspect
from rich.console import Console

from twotower.config import ProjectSettings

TARGET: Final = Path(__file__).parents[1] / "docs" / "settings.md"

HEAD: Final = """\
# Settings

One TOML file, read strictly: an unknown setting is refused with its path and the nearest known
name. `twotower config check` checks a file, `twotower config show --effective --origin` shows
every setting and where it came from. `twotower config schema > twotower.schema.json` writes a JSON
Schema: with `#:schema ./twotower.schema.json` as the file's first line an editor that knows TOML
completes the names and marks what is wrong.

Where a setting is given more than once, the later of these wins:

1. the file;
2. the environment: `TWOTOWER_TRAINING__SEED=3` is `training.seed`, with two underscores between
   parts and any name in capitals. Texts are taken as they are, anything else is written as JSON:
   `3`, `0.5`, `true`, `["a", "b"]`. A variable with two underscores that names no setting is an
   error; one without that names none is left alone;
3. flags: `twotower --set training.seed=4 full`, and the flags of single commands.

This page is written by `scripts/settings_reference.py`; a test holds it to the code.
"""


class Setting(NamedTuple):
    """One line of the reference."""

    name: str
    kind: str
    default: str
    meaning: str


def meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The texts that stand below the fields of a struct, by field."""
    found: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if not issubclass(base, msgspec.Struct) or base is msgspec.Struct:
            continue
        body = ast.parse(textwrap.dedent(python_inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                words = ast.literal_eval(text.value)
                found[ast.unparse(field.target)] = " ".join(words.split())
    return found


def settings_of(struct: type[msgspec.Struct]) -> list[Setting]:
    """Every setting of one struct that is no table of its own."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    texts = meanings(struct)
    return [
        Setting(
            field.encode_name,
            kind_of(field.type),
            default_of(field),
            texts.get(field.name) or table_meaning(field.type),
        )
        for field in info.fields
    ]


def table_meaning(kind: inspect.Type) -> str:
    """What the struct says of itself, for a setting that is a table."""
    choices = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    tables = [choice.cls for choice in choices if isinstance(choice, inspect.StructType)]
    return summary_of(tables[0]) if tables else ""


def summary_of(struct: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((struct.__doc__ or "").split("\n\n")[0].split())


def kind_of(kind: inspect.Type) -> str:
    """A type in words, with its bounds."""
    if isinstance(kind, inspect.UnionType):
        return " or ".join(kind_of(choice) for choice in kind.types if not _is_none(choice))
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, inspect.StructType):
        return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
    if isinstance(kind, inspect.DictType):
        return f"table of {kind_of(kind.value_type)} by name"
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return f"list of {kind_of(kind.item_type)}"
    names = {inspect.IntType: "integer", inspect.FloatType: "number", inspect.BoolType: "boolean"}
    return names.get(type(kind), "text") + bounds_of(kind)


def _is_none(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.NoneType)


def bounds_of(kind: inspect.Type) -> str:
    """The limits of a number, as ` from 0 to 1`."""
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    limits = {name: getattr(kind, name, None) for name in words}
    return "".join(f" {words[n]} {value:g}" for n, value in limits.items() if value is not None)


def default_of(field: inspect.Field) -> str:
    """The default as TOML would have it."""
    if field.required:
        return "required"
    default = field.default
    if default is msgspec.NODEFAULT:
        default = field.default_factory()
    if default is None:
        return "not set"
    if isinstance(default, msgspec.Struct):
        changed = {
            name: value
            for name, value in msgspec.to_builtins(default).items()
            if value != msgspec.to_builtins(type(default)()).get(name)
        }
        return ", ".join(f"`{n} = {_json(v)}`" for n, v in changed.items()) or "its defaults"
    return f"`{_json(default)}`"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def structs_in(annotation: object) -> Iterator[type[msgspec.Struct]]:
    """The structs that an annotation names, in order, however deep inside unions and tables."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    parts = annotation.__args__ if isinstance(annotation, types.UnionType) else ()
    for part in (*typing.get_args(annotation), *parts):
        yield from structs_in(part)


def all_structs(root: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """The struct and everything that a file may hold below it, each once, in reading order."""
    found = [root]
    for struct in found:
        for annotation in typing.get_type_hints(struct).values():
            found += [
                inner for inner in dict.fromkeys(structs_in(annotation)) if inner not in found
            ]
    return found


def table_paths(root: type[msgspec.Struct]) -> dict[type[msgspec.Struct], list[str]]:
    """Where each struct may stand in the file, as `training.full`."""
    paths: dict[type[msgspec.Struct], list[str]] = {root: [""]}
    for struct in all_structs(root):
        for name, annotation in typing.get_type_hints(struct).items():
            is_table = typing.get_origin(annotation) is dict
            for inner in dict.fromkeys(structs_in(annotation)):
                known = paths.setdefault(inner, [])
                known += [
                    ".".join(part for part in (path, name, "NAME" * is_table) if part)
                    for path in paths[struct]
                ]
    return {struct: list(dict.fromkeys(places)) for struct, places in paths.items()}


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    places = table_paths(ProjectSettings)
    for struct in all_structs(ProjectSettings):
        where = ", ".join(f"`[{path}]`" if path else "top of the file" for path in places[struct])
        parts.append(f"\n## {struct.__name__}\n\n{where}. {summary_of(struct)}\n")
        parts.append("\n| setting | value | default | meaning |\n|---|---|---|---|\n")
        parts += [
            f"| `{s.name}` | {s.kind} | {s.default} | {s.meaning} |\n".replace(" |  |", " | |")
            for s in settings_of(struct)
        ]
    return "".join(parts)


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    page, console = reference(), Console(highlight=False)
    if not parser.parse_args().check:
        TARGET.write_text(page, "utf-8")
        console.print(f"wrote {TARGET.name}")
        return 0
    is_current = TARGET.exists() and TARGET.read_text("utf-8") == page
    console.print("current" if is_current else "not current: run scripts/settings_reference.py")
    return 0 if is_current else 1


if __name__ == "__main__":
    sys.exit(main())
