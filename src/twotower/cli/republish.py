"""`twotower generations republish`: the model of a generation under another vector engine."""

from __future__ import annotations

from typing import Annotated

import typer

from twotower.cli import output
from twotower.cli.gates import gates_table
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

__all__ = ["republish"]

NameArgument = Annotated[str, typer.Argument(help="A generation, such as g-000001.")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="The vector engine, as index.engine names it.")
]


def republish(
    name: NameArgument,
    engine: EngineOption,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Publish the model of a generation once more with an index of another engine; not live yet.

    Example: twotower generations republish g-000001 --engine faiss_ivf
    """
    from twotower.config import load_project
    from twotower.publishing.republishing import republish as publish_again
    from twotower.publishing.store import ModelStore

    project = load_project(config)
    manifest = publish_again(
        ModelStore(project.data_path),
        name,
        engine,
        index=project.index,
        settings=project.publishing,
    ).manifest
    if as_json:
        output.emit_json(manifest)
        return
    if manifest.gates:
        output.console.print(gates_table(manifest))
    output.console.print(
        f"{manifest.name} is {name} with {manifest.index.engine}, not live; make it so with: "
        f"twotower generations activate {manifest.name}",
        markup=False,
    )
