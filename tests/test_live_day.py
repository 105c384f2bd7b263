"""A live day, end to end: `twotower up`, events posted, joined, learned, published, served.

Every process is killed once, a night goes live meanwhile, and nothing is lost, repeated or torn.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from collector_project import as_lines, free_port
from runtime_project import FakeClock, RunningUp, is_alive, running_up
from serving_project import RunningServer, eventually
from toy import FIRST_DAY, NUM_ITEMS, NUM_USERS, write_project
from twotower.config import Project, load_project
from twotower.data.days import day_limits_ms
from twotower.data.event_log import open_event_log
from twotower.data.events import Event
from twotower.data.example_log import ExampleLog
from twotower.data.importing import import_tables
from twotower.data.label_join.joiner import join_available
from twotower.nightly import run_night
from twotower.publishing.delta import read_deltas
from twotower.publishing.store import ModelStore
from twotower.runtime.night_run import NightRunner
from twotower.runtime.nights import NightBook
from twotower.runtime.observing import observe
from twotower.runtime.processes import night_table
from twotower.runtime.schedule import NightSchedule

PATIENCE_S = 120.0
PUBLISH_EVERY_S = 5.0
FIRST_TRAINED = FIRST_DAY.date().isoformat()
LAST_DAY = (FIRST_DAY + timedelta(days=2)).date().isoformat()
STREAM = """
[serving]
port = {serve}
poll_s = 0.05
drain_delay_s = 0.0
[collector]
port = {collect}
[join]
window_s = 0.5
allowed_lateness_s = 0.0
idle_after_s = 0.5
remember_s = 600.0
poll_s = 0.05
[increment]
publish_every_s = {publish_every_s}
batch_size = 16
uniform = 16
[runtime]
first_pause_s = 0.05
[publishing.gates]
max_mean_cosine = 1.0
"""


class Day(NamedTuple):
    """What was posted and acknowledged, and what was answered."""

    project: Project
    up: RunningUp
    server: RunningServer
    collector: RunningServer
    acknowledged: set[str]
    answers: list[dict[str, Any]]

    def post(self) -> None:
        """Post one impression and its click until they are acknowledged."""
        number = len(self.acknowledged) // 2
        shown = Event(
            kind="impression",
            event_id=f"i{number}",
            request_id=f"r{number}",
            user_id=f"u{number % NUM_USERS}",
            item_id=number % NUM_ITEMS,
            event_time_ms=int(time.time() * 1000),
        )
        replace = msgspec.structs.replace
        clicked = replace(shown, kind="outcome", event_id=f"o{number}", outcome="click")
        events = [shown, clicked]
        eventually(lambda: self._accepts(as_lines(events)), PATIENCE_S)
        self.acknowledged.update(event.event_id for event in events)

    def _accepts(self, body: bytes) -> bool:
        try:
            return self.collector.ask("POST", "/v1/events", body).status == 202
        except OSError:
            return False

    def ask(self) -> dict[str, Any] | None:
        """One answer, None while the server is away."""
        try:
            reply = self.server.ask("POST", "/v1/retrieve", {"user_id": "u1", "k": 5})
        except OSError:
            return None
        if reply.status != 200:
            return None
        self.answers.append(reply.json() | {"at_ms": time.time() * 1000})
        return self.answers[-1]

    def until(self, condition: Any) -> dict[str, Any]:
        """Go on posting and asking until an answer fulfils the condition."""

        def step() -> dict[str, Any] | None:
            self.post()
            answer = self.ask()
            return answer if answer is not None and condition(answer) else None

        found = eventually(step, PATIENCE_S)
        assert found is not None
        return found


@contextlib.contextmanager
def live_day(
    folder: Path, *options: str, publish_every_s: float, num_days: int = 1
) -> Iterator[Day]:
    """A project with one trained day and no events, under `twotower up`."""
    toy = write_project(folder, num_days=num_days, history=False)
    ports = {"serve": free_port(), "collect": free_port()}
    with toy.path.open("a") as file:
        file.write(STREAM.format(publish_every_s=publish_every_s, **ports))
    project = load_project(toy.path)
    import_tables(project)
    run_night(project, FIRST_TRAINED)
    with running_up(project.path, project.data_path, *options) as up:
        server = RunningServer(up.process, f"http://127.0.0.1:{ports['serve']}")
        collector = RunningServer(up.process, f"http://127.0.0.1:{ports['collect']}")
        yield Day(project, up, server, collector, set(), [])


def import_days(day: Day, num_days: int) -> None:
    """Import a longer log; what was in the shorter one is the same in it."""
    config = day.project.path.read_text()
    write_project(day.project.root, num_days=num_days, history=False)
    day.project.path.write_text(config)
    import_tables(day.project)


def newest_event_ms(project: Project, answer: dict[str, Any]) -> int:
    """The newest event inside the generation and the delta that an answer names."""
    base = ModelStore(project.data_path).open(answer["generation"], verify=False)
    deltas = list(read_deltas(project.data_path, base))
    newest = base.manifest.window.cut_ms
    for delta in deltas[: answer["delta"] or 0]:
        newest = max(newest, delta.manifest.span.newest_event_time_ms)
    return newest


@pytest.mark.slow
def test_events_become_answers_while_processes_die(tmp_path: Path) -> None:
    with live_day(tmp_path, publish_every_s=1.0) as day:
        _answers_while_processes_die(day)
        check_everything_is_whole(day)


def _answers_while_processes_die(day: Day) -> None:
    before = ModelStore(day.project.data_path).live()
    assert before is not None
    first = day.until(lambda answer: answer["delta"] is not None)
    assert first["generation"] == before.generation
    for name in ("collect", "join", "increment", "serve"):
        restarted = day.up.kill_child(name)
        assert restarted.restarts == 1
        posted = len(day.acknowledged)
        last = day.answers[-1]["delta"] or 0
        day.until(lambda answer, last=last: (answer["delta"] or 0) > last)
        assert len(day.acknowledged) > posted
    state = observe(day.project)
    assert state.is_up
    assert state.freshness_s is not None
    assert state.freshness_s < 60
    assert state.up is not None
    assert {child.name: child.restarts for child in state.up.processes} == dict.fromkeys(
        ("serve", "collect", "join", "increment"), 1
    )
    pids = [child.pid for child in state.up.processes]
    assert day.up.stop() == 0
    assert not any(is_alive(pid) for pid in pids if pid)


@pytest.mark.slow
def test_a_night_goes_live_and_freshness_does_not_fall_back(tmp_path: Path) -> None:
    """Generation and catch-up delta in one swap; rolled back, the older increments go on."""
    with live_day(tmp_path, publish_every_s=PUBLISH_EVERY_S) as day:
        first = day.until(lambda answer: answer["delta"] is not None)
        import_days(day, 3)
        second = day.until(lambda answer: answer["generation"] != first["generation"])
        assert second["delta"] is not None, "the generation went live without its catch-up"
        day.until(lambda answer: (answer["delta"] or 0) > second["delta"])
        eventually(lambda: _night_is_over(day), PATIENCE_S)
        ModelStore(day.project.data_path).roll_back(reason="test")
        last = max(a["delta"] or 0 for a in day.answers if a["generation"] == first["generation"])
        third = day.until(lambda answer: answer["generation"] == first["generation"])
        assert third["sequence"] > second["sequence"]
        assert third["delta"] >= last, "the increments of the older generation were lost"
        day.until(
            lambda a: a["generation"] == first["generation"] and (a["delta"] or 0) > third["delta"]
        )
        assert day.up.stop() == 0
        (night,) = NightBook(day.project.data_path).all()
        assert (night.day, night.outcome) == (LAST_DAY, "live")
        assert night.generation == second["generation"]
        forward = [a for a in day.answers if a["sequence"] < third["sequence"]]
        newest = [newest_event_ms(day.project, answer) for answer in forward]
        best = list(itertools.accumulate(newest, max))
        fell_ms = max(b - n for b, n in zip(best, newest, strict=True))
        assert fell_ms <= PUBLISH_EVERY_S * 1000
        check_everything_is_whole(day)


def _night_is_over(day: Day) -> bool:
    status = day.up.status()
    nights = NightBook(day.project.data_path).all()
    is_idle = status is not None and status.night is not None and status.night.running is None
    return is_idle and [night.outcome for night in nights] == ["live"]


@pytest.mark.slow
def test_a_refused_night_is_trained_with_the_next_one(tmp_path: Path) -> None:
    """Full updates only: nothing but nights runs, from what is imported."""
    only_nights = ("--set", 'runtime.processes=["full"]')
    refusing = ("--set", "publishing.gates.max_mean_cosine=0.0")
    with live_day(tmp_path, *only_nights, *refusing, publish_every_s=1.0, num_days=2) as day:
        data_path = day.project.data_path
        live = ModelStore(data_path).live()
        eventually(lambda: [n.outcome for n in NightBook(data_path).all()] == ["refused"], 60.0)
        assert ModelStore(data_path).live() == live
        assert day.up.stop() == 0
    import_days(day, 3)
    with running_up(day.project.path, data_path, *only_nights) as up:
        eventually(
            lambda: [n.outcome for n in NightBook(data_path).all()] == ["refused", "live"], 60.0
        )
        assert up.stop() == 0
    window = ModelStore(data_path).open(verify=False).manifest.window
    assert (window.from_day, window.through_day) == ("2024-03-02", LAST_DAY)


def check_everything_is_whole(day: Day) -> None:
    """What was acknowledged is stored once, joined once, and in an unbroken row of deltas."""
    project = day.project
    with open_event_log(project.data_path, project.event_log) as log:
        stored = [event.event_id for event in log.read_events(0, 10**6)]
        join_available(
            project.data_path,
            log,
            project.join,
            project.time_zone,
            int(time.time() * 1000) + 60_000,
        )
    assert sorted(stored) == sorted(day.acknowledged)
    examples = ExampleLog.open(project.data_path).read(0, 10**6)
    impressions = [event_id for event_id in stored if event_id.startswith("i")]
    assert len(examples.offset) == len(set(examples.event_key.tolist()))
    assert len(examples.offset) >= len(impressions)
    assert int(examples.is_positive.sum()) >= len(impressions), "a click was lost"
    store = ModelStore(project.data_path)
    for name in store.names():
        through = None
        for delta in read_deltas(project.data_path, store.open(name)):
            span = delta.manifest.span
            assert through in (None, span.first_offset)
            through = span.through_offset
    state = observe(project)
    assert not state.is_up
    assert state.problems == {}
    assert msgspec.json.encode(state)


def streamed_day(project: Project, day: str) -> None:
    """A day of clicks in the event log, each received as it happened, and a few of the next day."""
    start_ms = day_limits_ms(day, project.time_zone)[0]
    with open_event_log(project.data_path, project.event_log) as log:
        for number in range(305):
            at_ms = start_ms + number * 86_400_000 // 300
            shown = Event(
                kind="impression",
                event_id=f"i{number}",
                user_id=f"u{number % NUM_USERS}",
                item_id=(number * 7) % NUM_ITEMS,
                event_time_ms=at_ms,
            )
            clicked = msgspec.structs.replace(
                shown, kind="outcome", event_id=f"o{number}", outcome="click"
            )
            log.append([shown, clicked], at_ms)


def join_until(project: Project, now_s: float) -> None:
    with open_event_log(project.data_path, project.event_log) as log:
        now_ms = round(now_s * 1000)
        join_available(project.data_path, log, project.join, project.time_zone, now_ms)


@pytest.mark.slow
def test_a_streamed_day_is_trained_once_the_join_has_cut_it(tmp_path: Path) -> None:
    day = (FIRST_DAY + timedelta(days=1)).date().isoformat()
    toy = write_project(tmp_path, num_days=1, history=False)
    with toy.path.open("a") as file:
        file.write("[publishing.gates]\nmax_mean_cosine = 1.0\n[join]\nidle_after_s = 86400\n")
    project = load_project(toy.path)
    import_tables(project)
    run_night(project, FIRST_TRAINED)
    streamed_day(project, day)
    due = FakeClock((FIRST_DAY + timedelta(days=2, hours=3)).timestamp())
    runner = NightRunner(
        project.data_path,
        project.runtime,
        NightSchedule("03:00", "UTC"),
        lambda night: night_table(project, night)[:1],
        due.clock,
    )
    runner.look()
    assert runner.state().waits_for == day
    assert runner.state().running is None, "a day that is not complete was trained"
    join_until(project, due.now_s)
    due.move(10.0)
    runner.look()
    assert runner.state().running == "full"
    eventually(lambda: runner.look() and runner.state().running is None, PATIENCE_S)
    (night,) = NightBook(project.data_path).all()
    assert (night.day, night.outcome) == (day, "live")
    window = ModelStore(project.data_path).open().manifest.window
    assert window.example_offset == ExampleLog.open(project.data_path).cuts[day] == 300
    base = ModelStore(project.data_path).open()
    (catch_up,) = read_deltas(project.data_path, base)
    assert catch_up.manifest.span.first_offset == window.example_offset
