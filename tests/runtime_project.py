"""Supervisors in processes of their own: of the project's commands, and of small fake ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from serving_project import DEADLINE_S, eventually
from twotower.runtime.child import Clock
from twotower.runtime.processes import ProcessSpec
from twotower.runtime.settings import RuntimeSettings
from twotower.runtime.status_file import ProcessStatus, RuntimeStatus, read_status

__all__ = [
    "FakeClock",
    "RunningUp",
    "is_alive",
    "python",
    "running_supervisor",
    "running_up",
]


_SUPERVISOR = Path(__file__).with_name("supervisor_process.py")


class FakeClock:
    """Stands still until it is moved; wall time and monotonic time move together."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s
        self.clock = Clock(lambda: self.now_s, lambda: self.now_s)

    def move(self, seconds: float) -> None:
        self.now_s += seconds


def python(name: str, code: str) -> ProcessSpec:
    """A process that runs a line of Python."""
    return ProcessSpec(name, (sys.executable, "-c", code))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class RunningUp:
    """A supervisor in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], data_path: Path) -> None:
        self.process = process
        self.data_path = data_path

    def status(self) -> RuntimeStatus | None:
        found = read_status(self.data_path)
        return found if found and found.pid == self.process.pid else None

    def child(self, name: str) -> ProcessStatus | None:
        status = self.status()
        return next((c for c in status.processes if c.name == name), None) if status else None

    def running_child(self, name: str, *, not_pid: int | None = None) -> ProcessStatus:
        """Wait until a process runs, another than `not_pid`."""

        def look() -> ProcessStatus | None:
            assert self.process.poll() is None, "the supervisor ended"
            found = self.child(name)
            is_new = found is not None and found.pid not in (None, not_pid)
            return found if is_new else None

        found = eventually(look)
        assert found is not None
        return found

    def kill_child(self, name: str) -> ProcessStatus:
        """kill -9, and wait for the next one."""
        pid = self.running_child(name).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return self.running_child(name, not_pid=pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(3 * DEADLINE_S)


@contextlib.contextmanager
def _running(
    command: list[str], data_path: Path, log: Path, env: Mapping[str, str]
) -> Iterator[RunningUp]:
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, text=True, env=os.environ | {**env})
    up = RunningUp(process, data_path)
    try:
        eventually(lambda: up.status() or process.poll() is not None)
        yield up
    finally:
        process.kill()  # its children die with it
        process.wait()


@contextlib.contextmanager
def running_up(config: Path, data_path: Path, *options: str, **env: str) -> Iterator[RunningUp]:
    """Start `twotower up`; killed at the end if it still runs. Its log is `up.log`."""
    command = [sys.executable, "-m", "twotower", *options, "up", "--config", str(config)]
    with _running(command, data_path, config.with_name("up.log"), env) as up:
        yield up


@contextlib.contextmanager
def running_supervisor(
    folder: Path, table: list[ProcessSpec], settings: RuntimeSettings | None = None
) -> Iterator[RunningUp]:
    """Start a supervisor of any processes, with its log in `folder`."""
    given = {"table": table, "settings": settings or RuntimeSettings(), "folder": str(folder)}
    command = [sys.executable, str(_SUPERVISOR), msgspec.json.encode(given).decode()]
    with _running(command, folder, folder / "up.log", {}) as up:
        yield up
