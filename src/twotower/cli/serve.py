"""`twotower serve`: answer over HTTP, from whatever is live."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from twotower.cli import output
from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

if TYPE_CHECKING:
    from twotower.config import Project
    from twotower.publishing.activation import Activation

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(serve)


def serve(
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="0 takes a free one.", show_default="8080"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=256, help="Processes.", show_default="1"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without an API key.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Serve the live generation over HTTP, and every later one as it goes live.

    Example: twotower serve --port 8080 --workers 2
    """
    import msgspec

    from twotower.config import load_project
    from twotower.serving.project import ServedProject
    from twotower.serving.reach import check_reach
    from twotower.serving.server import Server

    project = load_project(config)
    flags = {"host": host, "port": port, "workers": workers}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = msgspec.structs.replace(project.serving, **given)
    requires_key = check_reach(settings.host, project.data_path, insecure=insecure)
    served = ServedProject(
        project.data_path, project.join.positive_outcomes, project.collector, announcer(project)
    )
    server = Server(served, settings, requires_key=requires_key)
    url = server.start()
    if as_json:
        output.emit_json({"url": url, "workers": settings.workers})
    else:
        output.console.print(
            f"serving on {url} with {settings.workers} worker(s); documentation: {url}/docs; "
            "stop with Ctrl-C or SIGTERM",
            markup=False,
        )
    server.loop()
    if not server.stop():
        raise typer.Exit(1)


def announcer(project: Project) -> Callable[[Activation], object]:
    """Return what tells a vector server what is live; other engines load nothing there."""
    from twotower.serving.project import tell_nobody

    if project.index.engine != "milvus":
        return tell_nobody
    from twotower.index import point_alias
    from twotower.publishing.store import ModelStore

    root, prefix = ModelStore(project.data_path).root, project.index.milvus.prefix
    return lambda activation: point_alias(root / activation.generation / "index", prefix)
