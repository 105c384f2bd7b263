"""Which commands `twotower up` runs, and how one of them is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from twotower.config import Project
from twotower.errors import ConfigError
from twotower.runtime.settings import ProcessName

__all__ = ["PROCESS_VARIABLE", "ProcessSpec", "night_table", "process_table", "spawn"]

PROCESS_VARIABLE: Final = "TWOTOWER_PROCESS"
"""Tells a process its name under the supervisor; `cli.output` puts it into its log lines."""

_ARGUMENTS: Final[dict[ProcessName, tuple[str, ...]]] = {
    "serve": ("serve",),
    "collect": ("collect",),
    "join": ("join", "--follow"),
    "increment": ("increment", "--follow"),
}
"""In the order in which they are told to stop: first whoever takes, last whoever passes on."""
_REACHABLE: Final = ("serve", "collect")
_TETHER: Final = Path(__file__).with_name("tether.py")


class ProcessSpec(NamedTuple):
    """A process: its name in status and logs, and its command line."""

    name: str
    command: tuple[str, ...]


def process_table(
    project: Project, options: Sequence[str] = (), *, insecure: bool = False
) -> tuple[ProcessSpec, ...]:
    """Return the processes that a project keeps running, in the order in which they stop.

    Args:
        project: whose `runtime.processes` are wanted.
        options: of the command line, before the command: `--set NAME=VALUE`, `-q`.
        insecure: let server and collector listen where other machines can reach them.

    Raises:
        ConfigError: a port is left to chance, or two processes would share one.
    """
    wanted = [name for name in _ARGUMENTS if name in project.runtime.processes]
    _check_ports(project, wanted)
    table = []
    for name in wanted:
        open_to_all = ("--insecure",) if insecure and name in _REACHABLE else ()
        arguments = (*_ARGUMENTS[name], *open_to_all)
        table.append(ProcessSpec(name, _command(project, options, arguments)))
    return tuple(table)


def night_table(project: Project, day: str, options: Sequence[str] = ()) -> tuple[ProcessSpec, ...]:
    """Return what the night of `day` runs, one after the other; the first one is the training."""
    keep = str(project.runtime.keep_generations)
    steps = {
        "full": ("full", "--day", day),
        "prune": ("generations", "prune", "--keep", keep),
        "forget": ("events", "forget"),
    }
    has_stream = "join" in project.runtime.processes
    return tuple(
        ProcessSpec(name, _command(project, options, arguments))
        for name, arguments in steps.items()
        if name != "forget" or has_stream
    )


def _command(project: Project, options: Sequence[str], arguments: Sequence[str]) -> tuple[str, ...]:
    config = str(project.path.resolve())
    return (sys.executable, "-m", "twotower", *options, *arguments, "--config", config)


def _check_ports(project: Project, wanted: Sequence[ProcessName]) -> None:
    """A process that is started again must be found where it was."""
    ports = {"serve": project.serving.port, "collect": project.collector.port}
    used = {name: port for name, port in ports.items() if name in wanted}
    if 0 in used.values():
        raise ConfigError(
            "expected fixed ports under `twotower up`, found 0, any free one, at serving.port or "
            "collector.port; nothing was started; name a port, or run that command by itself"
        )
    if len(set(used.values())) < len(used):
        raise ConfigError(
            f"expected a port of its own for each process, found {project.serving.port} at both "
            "serving.port and collector.port; nothing was started"
        )


def spawn(spec: ProcessSpec) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one; call it from the main thread only.

    The kernel ties it to the thread that starts it. It has a session of its own, so that Ctrl-C
    reaches the supervisor alone. It logs to this one's stderr; what it prints for people is left
    out.
    """
    tether = (sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()))
    sys.stderr.flush()
    return subprocess.Popen(
        (*tether, *spec.command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {PROCESS_VARIABLE: spec.name, "PYTHONSAFEPATH": "1"},
    )
