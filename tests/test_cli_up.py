"""`twotower up`: the project's own commands under one supervisor."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collector_project import as_lines, free_port
from runtime_project import is_alive, running_up
from serving_project import RunningServer, eventually, publish_marked, write_project
from twotower.cli.app import app
from twotower.config import load_project
from twotower.data.events import Event
from twotower.durable import exclusive
from twotower.errors import ConfigError, NotReady
from twotower.publishing.store import ModelStore
from twotower.runtime.files import LOCK, runtime_folder


def invoke(config: Path, *options: str, before: tuple[str, ...] = ()) -> str:
    result = CliRunner().invoke(
        app,
        [*before, "up", "-c", str(config), *options],
        catch_exceptions=False,
        standalone_mode=False,
    )
    if result.exception is not None:
        raise result.exception
    return result.stdout


def up_project(folder: Path, more: str = "") -> tuple[Path, int, int]:
    """A project with free ports: its file, the server's port, the collector's."""
    serve, collect = free_port(), free_port()
    tables = f"port = {serve}\n[collector]\nport = {collect}\n[runtime]\nfirst_pause_s = 0.05\n"
    return write_project(folder, more=tables + more), serve, collect


def test_a_dry_run_says_what_would_be_started_and_starts_nothing(tmp_path: Path) -> None:
    config, serve, collect = up_project(tmp_path, 'night_at = "04:15"')
    plan = json.loads(invoke(config, "--dry-run", "--json", before=("--set", "training.seed=3")))
    urls = {process["name"]: process["url"] for process in plan["processes"]}
    assert urls["serve"] == f"http://127.0.0.1:{serve}"
    assert urls["collect"] == f"http://127.0.0.1:{collect}"
    for process in plan["processes"]:
        options = process["command"][3:5]
        assert options == ["--set", "training.seed=3"], "its processes would have other settings"
        assert process["command"][-2:] == ["--config", str(config)]
    assert plan["night"]["at"] == "04:15"
    assert "T04:15:00" in plan["night"]["next_due"]
    assert plan["night"]["commands"][0][5:7] == ["full", "--day"]
    words = invoke(config, "--dry-run")
    assert "would be started" in words
    assert "from 04:15 (UTC)" in words
    assert not (tmp_path / "twotower-data").exists()


def test_parts_that_run_elsewhere_are_left_out(tmp_path: Path) -> None:
    config, _, _ = up_project(tmp_path, 'processes = ["collect"]')
    plan = json.loads(invoke(config, "--dry-run", "--json"))
    assert [process["name"] for process in plan["processes"]] == ["collect"]
    assert plan["night"] is None
    assert "no nights" in invoke(config, "--dry-run")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("port = 0", "expected fixed ports"),
        ("port = 8081", "a port of its own"),
        ('host = "0.0.0.0"', "--insecure"),
        ('[runtime]\nprocesses = ["serve", "serve"]', "each process once"),
        ('[runtime]\nprocesses = ["server"]', r"\$\.runtime\.processes"),
        ('[runtime]\nnight_at = "25:00"', r"\$\.runtime\.night_at"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, more: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        invoke(write_project(tmp_path, more=more), "--dry-run")


def test_two_supervisors_of_one_project_are_refused(tmp_path: Path) -> None:
    config, _, _ = up_project(tmp_path)
    folder = runtime_folder(load_project(config).data_path)
    folder.mkdir(parents=True)
    with (
        exclusive(folder / LOCK, "testing", 0.0),
        pytest.raises(NotReady, match="another process is running `twotower up`"),
    ):
        invoke(config)


@pytest.mark.slow
def test_server_and_collector_run_restart_and_drain(tmp_path: Path) -> None:
    config, serve, collect = up_project(tmp_path)
    data_path = load_project(config).data_path
    store = ModelStore(data_path)
    store.activate(publish_marked(store, 1))
    event = Event(kind="impression", event_id="e1", user_id=1, item_id=2, event_time_ms=10**12)
    with running_up(config, data_path) as up:
        server = RunningServer(up.process, f"http://127.0.0.1:{serve}")
        collector = RunningServer(up.process, f"http://127.0.0.1:{collect}")

        def accepted(running: RunningServer) -> int:
            try:
                reply = running.ask("POST", "/v1/events", as_lines([event]))
            except OSError:
                return 0
            return int(reply.json()["end_offset"]) if reply.status == 202 else 0

        def is_ready() -> bool:
            try:
                return bool(server.readiness()["status"] == "ready")
            except OSError:
                return False

        eventually(is_ready)
        assert eventually(lambda: accepted(collector)) == 1
        workers = server.worker_pids()
        for name in ("serve", "collect"):
            assert up.kill_child(name).restarts == 1
        eventually(lambda: not any(is_alive(pid) for pid in workers))
        eventually(is_ready)
        assert eventually(lambda: accepted(collector)) == 1, "the event was stored twice or lost"
        assert up.stop() == 0
    log = (tmp_path / "up.log").read_text()
    stopped = [log.index(f'"process_stopped","name":"{name}"') for name in ("serve", "collect")]
    assert stopped == sorted(stopped)


@pytest.mark.slow
def test_a_killed_supervisor_takes_server_workers_and_collector_with_it(tmp_path: Path) -> None:
    config, serve, _ = up_project(tmp_path)
    data_path = load_project(config).data_path
    with running_up(config, data_path) as up:
        server = RunningServer(up.process, f"http://127.0.0.1:{serve}")

        def worker_pids() -> set[int]:
            try:
                return server.worker_pids()
            except OSError:
                return set()

        pids = {*eventually(worker_pids), up.running_child("serve").pid or 0}
        pids.add(up.running_child("collect").pid or 0)
        os.kill(up.process.pid, signal.SIGKILL)
        up.process.wait()
        eventually(lambda: not any(is_alive(pid) for pid in pids if pid))
    with running_up(config, data_path) as again:
        again.running_child("serve")
        assert again.stop() == 0
