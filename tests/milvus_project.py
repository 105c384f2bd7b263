"""A real Milvus server for tests: `milvus-lite server` on a free port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["running_milvus"]

_ATTEMPTS = 600


@contextlib.contextmanager
def running_milvus(folder: Path, port: int) -> Iterator[str]:
    """Its URI, once it accepts connections; killed at the end."""
    command = Path(sys.executable).with_name("milvus-lite")
    words: list[str | Path] = [
        command,
        "server",
        "--data-dir",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        _wait(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(_ATTEMPTS):
        assert process.poll() is None, "the Milvus server ended before it listened"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise AssertionError("the Milvus server does not listen")
