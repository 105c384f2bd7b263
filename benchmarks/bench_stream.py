"""The stream, part by part: how many events a second each part of it takes.

    python benchmarks/bench_stream.py --json bench-stream.json
    python benchmarks/bench_stream.py --parts event_log

A part is one function of this folder that takes a work folder and returns figures by name. Each
part measures its bound in the same run, on the same disk, because disks and neighbours differ.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from stream_event_log import event_log
from stream_increment import increment
from stream_join import label_join
from stream_tfrecord import tfrecord

Figures = Mapping[str, float | str | None]
"""By name; nothing where it could not be measured, with a text that says why."""

PARTS: Final[dict[str, Callable[[Path], Figures]]] = {
    "event_log": event_log,
    "increment": increment,
    "label_join": label_join,
    "tfrecord": tfrecord,
}


def main() -> None:
    """Measure the parts that were asked for, show one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", nargs="*", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the default is /tmp")
    arguments = parser.parse_args()
    figures: dict[str, float | str | None] = {}
    seconds: dict[str, float] = {}
    for name in arguments.parts:
        folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=arguments.folder))
        began = time.perf_counter()
        try:
            figures.update(PARTS[name](folder))
        finally:
            shutil.rmtree(folder)
        seconds[name] = round(time.perf_counter() - began, 1)
    report = {
        **{
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in figures.items()
        },
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
        "left_out": sorted(set(PARTS) - set(arguments.parts)) or None,
        "seconds": seconds,
    }
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def show(figures: Figures) -> None:
    """Print one table."""
    table = Table("figure", title="stream", title_justify="left")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, shown(value))
    Console().print(table)


def shown(value: float | str | None) -> str:
    """A figure as the table has it."""
    if isinstance(value, float):
        return f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
    return value or "not measured"


def commit() -> str:
    """The commit that was measured."""
    words = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    found: Any = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return str(found.stdout).strip()


if __name__ == "__main__":
    main()
