"""Processes that start warm: forked from one that has imported everything and started nothing.

A crash test kills hundreds of processes; starting Python and torch anew for each would take most
of its time. The server holds modules only: no thread, no lock, no open file of the project.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

__all__ = ["KILLED", "end", "run", "run_twotower", "start"]

KILLED: Final = -9
_TIMEOUT_S: Final = 120.0
_LOCK: Final = threading.Lock()
"""Starting a process also collects ended ones, which two threads may not do at once."""

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_PRELOADED: Final = """
torch._dynamo polars onnxruntime faiss onnx safetensors.numpy rich.console
twotower.nightly twotower.cli.app twotower.data.importing twotower.data.label_join.joiner
twotower.data.tfrecord.encode_loops twotower.data.tfrecord.parse_loops
"""
_CONTEXT.set_forkserver_preload(_PRELOADED.split())


def start(
    work: Callable[..., None], *arguments: object, variables: Mapping[str, str] | None = None
) -> ForkServerProcess:
    """Start `work(*arguments)` in a process of its own; both must be importable."""
    process = _CONTEXT.Process(target=_work, args=(dict(variables or {}), work, arguments))
    with _LOCK:
        process.start()
    return process


def run(
    work: Callable[..., None], *arguments: object, variables: Mapping[str, str] | None = None
) -> int:
    """Run it to its end and return the exit code, `KILLED` where SIGKILL ended it."""
    return end(start(work, *arguments, variables=variables))


def end(process: ForkServerProcess, after_s: float | None = None) -> int:
    """Wait for the process and return its exit code; kill it when it runs `after_s` seconds."""
    ended = wait([process.sentinel], _TIMEOUT_S if after_s is None else after_s)
    assert ended or after_s is not None, "the process does not end"
    with _LOCK:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_twotower(*words: str) -> None:
    """Be the command `twotower`; what it writes goes to the file `output` of `--config`'s folder.

    To be given to `start` or `run`, as `run(run_twotower, "full", "--config", path)`.
    """
    from twotower.cli.app import main

    output = Path(words[words.index("--config") + 1]).parent / "output"
    with output.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = ["twotower", *words]
    main()


def _work(variables: dict[str, str], work: Callable[..., None], arguments: Any) -> None:
    os.environ.update(variables)
    work(*arguments)
