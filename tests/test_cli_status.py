"""`twotower status` says how everything stands, whether or not anything runs."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from collector_project import free_port
from serving_project import publish_marked, write_project
from twotower.cli.app import app
from twotower.config import Project, load_project
from twotower.data.event_log import open_event_log
from twotower.data.events import Event
from twotower.data.example_log.manifest import ExampleManifest, examples_path, write_manifest
from twotower.durable import exclusive, is_held
from twotower.publishing.delta import DeltaSpan
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.store import ModelStore
from twotower.runtime.files import LOCK, runtime_folder
from twotower.runtime.nights import NightBook, NightRecord
from twotower.runtime.observing import ProjectState, observe
from twotower.runtime.status_file import NightState, ProcessStatus, RuntimeStatus, write_status

NOW_S = 1_700_000_000.0
NOW_MS = int(NOW_S * 1000)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return load_project(write_project(tmp_path, more=f"port = {free_port()}"))


def look(project: Project) -> ProjectState:
    return observe(project, lambda: NOW_S)


def shown(project: Project, *options: str) -> str:
    arguments = ["status", "-c", str(project.path), *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


def shown_json(project: Project) -> Any:
    return json.loads(shown(project, "--json"))


def supervisor(state: str = "running") -> RuntimeStatus:
    serve = ProcessStatus(name="serve", command=["serve"], state="running", pid=4711)
    join = ProcessStatus(name="join", command=["join"], last_exit="SIGKILL", restarts=3)
    return RuntimeStatus(
        pid=os.getpid(),
        state=state,  # type: ignore[arg-type]
        started_at_ms=NOW_MS - 5000,
        written_at_ms=NOW_MS,
        processes=[serve, join],
        night=NightState(next_due_at_ms=NOW_MS + 1000, waits_for="2023-11-13"),
    )


def test_an_empty_project_has_nothing_and_nothing_is_made(project: Project) -> None:
    state = look(project)
    assert (state.live, state.deltas, state.event_log, state.join) == (None, None, None, None)
    assert state.freshness_s is None
    assert not state.is_up
    assert state.problems == {}
    assert not project.data_path.exists()
    words = shown(project)
    assert "no supervisor runs" in words
    assert "none; make one with: twotower full" in words


def test_what_is_live_and_how_fresh(project: Project) -> None:
    store = ModelStore(project.data_path)
    for number in (1, 2):
        store.activate(publish_marked(store, number))
    state = look(project)
    assert state.live is not None
    assert (state.live.generation, state.live.sequence) == ("g-000002", 2)
    manifest = store.open(verify=False).manifest
    assert state.live.cut_ms == manifest.window.cut_ms
    assert state.freshness_s == pytest.approx(NOW_S - manifest.window.cut_ms / 1000)
    base = store.open()
    span = DeltaSpan(first_offset=0, through_offset=40, newest_event_time_ms=NOW_MS - 90_000)
    write_delta(project.data_path, base, ONE_USER, span, now_ms=NOW_MS - 30_000)
    manifest_of_join = ExampleManifest(
        user_id_kind="int",
        item_id_kind="int",
        event_offset=3,
        begin=100,
        end=100,
        cuts={"2023-11-13": 70},
    )
    examples_path(project.data_path).mkdir()
    write_manifest(examples_path(project.data_path), manifest_of_join)
    state = look(project)
    assert state.deltas is not None
    assert (state.deltas.sequence, state.deltas.age_s) == (1, 30.0)
    assert state.freshness_s == 90.0, "freshness counts from the newest event, not from the delta"
    assert state.increments is not None
    assert (state.increments.through_offset, state.increments.lag_examples) == (40, 60)
    assert state.join is not None
    assert state.join.last_cut == "2023-11-13"
    assert "g-000002, activation 2" in shown(project)


ONE_USER = DeltaRows(
    np.array([1], np.int64),
    np.zeros((1, 4), np.float32),
    np.zeros(0, np.int64),
    np.zeros((0, 4), np.float32),
    np.zeros((0, 4), np.float32),
)


def test_lags_of_the_streams(project: Project) -> None:
    with open_event_log(project.data_path, project.event_log) as log:
        event = Event(kind="impression", event_id="e", user_id=1, item_id=2, event_time_ms=10**12)
        log.append([event], NOW_MS)
    state = look(project)
    assert state.event_log is not None
    assert (state.event_log.begin, state.event_log.end) == (0, 1)
    assert shown_json(project)["event_log"] == {"begin": 0, "end": 1}


def test_processes_are_shown_while_the_supervisor_holds_its_lock(project: Project) -> None:
    folder = runtime_folder(project.data_path)
    write_status(project.data_path, supervisor())
    assert not look(project).is_up
    assert "the last one was killed" in shown(project)
    with exclusive(folder / LOCK, "testing", 0.0):
        assert look(project).is_up
        words = shown(project)
        assert "SIGKILL" in words
        assert "4711" in words
        assert "2023-11-13 is due and not complete yet" in words
    write_status(project.data_path, supervisor("stopped"))
    assert "killed" not in shown(project).replace("SIGKILL", "")


def test_the_last_nights_with_their_outcome(project: Project) -> None:
    book = NightBook(project.data_path)
    whole = NightRecord(
        day="2023-11-11", outcome="live", attempts=1, started_at_ms=0, ended_at_ms=3_720_000
    )
    book.write(whole)
    book.write(whole.changed(day="2023-11-12", outcome="refused"))
    words = shown(project)
    assert "refused" in words
    assert "1 h 2 min" in words
    assert [night["outcome"] for night in shown_json(project)["nights"]] == ["live", "refused"]


class _Answering(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_what_the_workers_serve_is_asked_of_the_server(project: Project) -> None:
    assert look(project).serving is None
    assert "no server listens" in shown(project)
    worker = {"pid": 1, "state": "serving", "generation": "g-000002", "sequence": 2, "more": 1}
    ready = {"status": "ready", "workers": [worker, {**worker, "pid": 2}]}
    with HTTPServer(("127.0.0.1", project.serving.port), _Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        _Answering.body = json.dumps(ready).encode()
        assert "ready: 2 workers, serving g-000002" in shown(project)
        _Answering.body = b"<html>"
        assert "found another one" in look(project).problems["serving"]
        server.shutdown()
        thread.join()


def test_one_damaged_part_hides_no_other(project: Project) -> None:
    store = ModelStore(project.data_path)
    store.activate(publish_marked(store, 1))
    examples_path(project.data_path).mkdir()
    (examples_path(project.data_path) / "manifest.json").write_text("{")
    state = look(project)
    assert state.live is not None
    assert "cannot be understood" in state.problems["join"]
    assert "cannot be understood" in shown(project)


def test_a_lock_is_held_while_its_block_runs(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_held(lock)
    assert not lock.exists()
    with exclusive(lock, "testing", 0.0):
        assert is_held(lock)
    assert not is_held(lock)
