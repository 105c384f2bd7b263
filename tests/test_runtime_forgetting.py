"""Retention: what the live generation may need is never forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from serving_project import write_project
from tiny_checkpoint import tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.cli.app import app
from twotower.config import Project, load_project
from twotower.data.days import day_limits_ms
from twotower.data.event_log import open_event_log
from twotower.data.events import Event
from twotower.data.example_log import ExampleLog
from twotower.data.label_join.joiner import join_available
from twotower.errors import NotReady
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.runtime.forgetting import forget_old, needed_windows

DAYS = ("2024-03-01", "2024-03-02", "2024-03-03", "2024-03-04")
A_DAY = 1000
NOW_MS = day_limits_ms("2024-03-10", "UTC")[0]
SETTINGS = """
[join]
shard_examples = 100
window_s = 60
idle_after_s = 86400
remember_s = 172800
[runtime]
keep_event_days = 0
"""


def window_through(checkpoint: Checkpoint, day: str, example_offset: int) -> Checkpoint:
    """The checkpoint as of a day and the join's cut of it."""
    window = msgspec.structs.replace(
        checkpoint.meta.window,
        from_day=day,
        through_day=day,
        cut_ms=day_limits_ms(day, "UTC")[1],
        example_offset=example_offset,
    )
    checkpoint.meta = msgspec.structs.replace(checkpoint.meta, window=window)
    return checkpoint


def go_live(project: Project, day: str) -> str:
    """Make a generation live that has trained through a day; its parent is none."""
    store = ModelStore(project.data_path)
    cut = ExampleLog.open(project.data_path).cuts[day]
    checkpoint = window_through(tiny_checkpoint(), day, cut)
    name = publish(checkpoint, store, index=IndexSettings()).name
    store.activate(name)
    return name


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose log and example log hold four days, each event received as it happened."""
    found = load_project(write_project(tmp_path, more=SETTINGS))
    with open_event_log(found.data_path, found.event_log) as log:
        for day in (*DAYS, "2024-03-05"):
            start = day_limits_ms(day, "UTC")[0]
            times = [start + n * 86_400_000 // A_DAY for n in range(A_DAY)]
            log.append([_event(at) for at in times[: A_DAY // 2]], times[A_DAY // 2])
            log.append([_event(at) for at in times[A_DAY // 2 :]], times[-1])
        join_available(found.data_path, log, found.join, found.time_zone, NOW_MS)
    return found


def _event(at_ms: int) -> Event:
    return Event(kind="impression", event_id=f"e{at_ms}", user_id=1, item_id=2, event_time_ms=at_ms)


def bounds(project: Project) -> tuple[int, int]:
    """The oldest example and the oldest event."""
    with open_event_log(project.data_path, project.event_log) as log:
        return ExampleLog.open(project.data_path).begin, log.bounds().begin


def test_everything_is_needed_while_nothing_is_live(project: Project) -> None:
    with pytest.raises(NotReady, match="no generation is live"):
        forget_old(project, NOW_MS)
    assert bounds(project) == (0, 0)


def test_what_is_older_than_the_cut_is_forgotten(project: Project) -> None:
    go_live(project, DAYS[1])
    cut = ExampleLog.open(project.data_path).cuts[DAYS[1]]
    assert cut == 2 * A_DAY
    planned = forget_old(project, NOW_MS, dry_run=True)
    assert bounds(project) == (0, 0)
    assert (planned.examples_before, planned.examples_begin) == (cut, 0)
    forgotten = forget_old(project, NOW_MS)
    assert forgotten.examples_begin == cut, "shards end at the cut here"
    assert 0 < forgotten.events_begin <= cut
    assert bounds(project) == (forgotten.examples_begin, forgotten.events_begin)
    with open_event_log(project.data_path) as log:
        first = log.read(forgotten.events_begin, 1)
    assert int(first.event_time_ms[0]) < day_limits_ms(DAYS[1], "UTC")[1]


def test_a_roll_back_finds_what_it_needs(project: Project) -> None:
    first = go_live(project, DAYS[0])
    second = go_live(project, DAYS[2])
    assert set(needed_windows(ModelStore(project.data_path))) == {first, second}
    forget_old(project, NOW_MS)
    log = ExampleLog.open(project.data_path)
    assert log.begin == log.cuts[DAYS[0]]


def test_the_newest_days_stay_by_the_setting(tmp_path: Path, project: Project) -> None:
    go_live(project, DAYS[3])
    for days, first in ((8.0, DAYS[0]), (7.0, DAYS[1]), (30.0, None)):
        text = SETTINGS.replace("keep_event_days = 0", f"keep_event_days = {days}")
        again = load_project(write_project(tmp_path, more=text))
        planned = forget_old(again, NOW_MS, dry_run=True)
        cuts = ExampleLog.open(again.data_path).cuts
        assert planned.examples_before == (cuts[first] if first else 0)


def test_events_that_were_not_joined_stay(project: Project) -> None:
    go_live(project, DAYS[3])
    path = project.data_path / "examples" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"event_offset": 10}))
    assert forget_old(project, NOW_MS).events_before == 10


def test_the_command(project: Project) -> None:
    go_live(project, DAYS[1])
    arguments = ["events", "forget", "-c", str(project.path)]
    words = CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False).stdout
    assert "would be removed" in words
    shown = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout
    assert json.loads(shown)["examples_begin"] == bounds(project)[0] > 0
