"""From the event log on the disk to the example log on the disk: commits, batches, retention."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import msgspec
import pytest

from label_join_reference import LogEvent, join_slowly, random_log
from stored_events import key_of, store, without_repeats
from test_data_label_join import ZONE, as_tuples
from twotower.data.event_log import EventLog, open_event_log
from twotower.data.example_log import ExampleLog, ExampleManifest
from twotower.data.example_log.manifest import FORMAT_VERSION
from twotower.data.example_log.writer import forget_examples
from twotower.data.label_join.joiner import follow, join_available, open_joiner
from twotower.data.label_join.settings import JoinSettings
from twotower.errors import CorruptArtifact, LineageError, NotReady

SETTINGS = JoinSettings(late_positive_weight=0.5, shard_examples=40)
LATER_MS = 700_000


@pytest.fixture(scope="module", params=[False, True], ids=["int", "text"])
def log(request: pytest.FixtureRequest) -> list[LogEvent]:
    return without_repeats(random_log(5, 500, text_ids=request.param))


def join(data_path: Path, now_ms: int | None, **changed: int) -> ExampleManifest:
    settings = msgspec.structs.replace(SETTINGS, **changed)
    with open_event_log(data_path) as events:
        manifest = join_available(data_path, events, settings, ZONE, now_ms)
    assert manifest is not None
    return manifest


def files(data_path: Path) -> dict[str, bytes]:
    """Every file of the example log but the locks, which are empty."""
    folder = data_path / "examples"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.stat().st_size}


def test_what_is_on_the_disk_is_the_truth(tmp_path: Path, log: list[LogEvent]) -> None:
    store(tmp_path, log)
    now_ms = log[-1].received_ms + LATER_MS
    manifest = join(tmp_path, now_ms)
    truth = join_slowly(log, SETTINGS, ZONE, now_ms)
    keys = {event.event_key: key_of(event) for event in log}
    found = ExampleLog.open(tmp_path)
    expected = [(keys[row[0]], *row[1:]) for row in truth.examples]
    assert as_tuples(found.read(0, 10**6)) == expected
    assert (found.cuts, manifest.event_cuts) == (truth.cuts, truth.event_cuts)
    assert found.watermark_ms == truth.watermark_ms
    assert {fate: n for fate, n in manifest.counts.items() if n} == truth.counts
    assert (found.end, found.event_offset) == (len(expected), len(log))
    assert len(manifest.shards) == -(-len(expected) // 40)


def test_the_files_do_not_tell_the_batches(tmp_path: Path, log: list[LogEvent]) -> None:
    now_ms = log[-1].received_ms + LATER_MS
    written = []
    for batch_events in (500, 7, 64):
        data_path = tmp_path / str(batch_events)
        store(data_path, log)
        join(data_path, now_ms, batch_events=batch_events)
        written.append(files(data_path))
    assert written[0] == written[1] == written[2]


def test_joining_as_events_come_is_joining_at_the_end(tmp_path: Path) -> None:
    """The clock moves the watermark at the end of the log as the next event would have."""
    log = without_repeats(random_log(6, 300))
    store(tmp_path / "whole", log)
    join(tmp_path / "whole", log[-1].received_ms + 10**8)
    for start in range(0, len(log), 50):
        store(tmp_path / "parts", log[start : start + 50])
        last_ms = log[min(start + 50, len(log)) - 1].received_ms
        next_ms = log[start + 50].received_ms if start + 50 < len(log) else last_ms + 10**8
        join(tmp_path / "parts", (last_ms + next_ms) // 2)
        join(tmp_path / "parts", next_ms)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_nothing_new_changes_nothing(tmp_path: Path, log: list[LogEvent]) -> None:
    store(tmp_path, log)
    join(tmp_path, None)
    before = files(tmp_path)
    assert join(tmp_path, None).event_offset == len(log)
    assert files(tmp_path) == before


def test_trying_writes_nothing(tmp_path: Path, log: list[LogEvent]) -> None:
    store(tmp_path, log)
    with (
        open_event_log(tmp_path) as events,
        open_joiner(tmp_path, events, SETTINGS, ZONE) as joiner,
    ):
        assert joiner is not None
        while joiner.join_next(None, commit=False):
            pass
        tried = joiner.manifest
    assert files(tmp_path) == {}
    done = join(tmp_path, None)
    assert (tried.end, tried.cuts, tried.counts) == (done.end, done.cuts, done.counts)


def test_without_events_there_is_nothing(tmp_path: Path) -> None:
    with open_event_log(tmp_path) as events:
        assert join_available(tmp_path, events, SETTINGS, ZONE, None) is None


def test_following_joins_what_comes(tmp_path: Path) -> None:
    log = without_repeats(random_log(7, 80))[:60]
    stopping, offsets = threading.Event(), []

    def at_batch(num_events: int, manifest: ExampleManifest) -> None:
        offsets.append(manifest.event_offset)
        assert num_events
        if manifest.event_offset == 30:
            store(tmp_path, log[30:])
        if manifest.event_offset == 60:
            stopping.set()

    store(tmp_path, log[:30])
    settings = JoinSettings(poll_s=0.01)
    with open_event_log(tmp_path) as events:
        follow(tmp_path, events, settings, ZONE, stopping=stopping, at_batch=at_batch)
    assert offsets[-1] == 60


def test_two_joins_at_once_are_refused(tmp_path: Path, log: list[LogEvent]) -> None:
    store(tmp_path, log)
    with (
        open_event_log(tmp_path) as events,
        open_joiner(tmp_path, events, SETTINGS, ZONE),
        pytest.raises(NotReady, match="joining events"),
    ):
        join(tmp_path, None)


def test_forgetting_keeps_what_is_asked_for_and_the_join_goes_on(
    tmp_path: Path, log: list[LogEvent]
) -> None:
    store(tmp_path, log[:300])
    with open_event_log(tmp_path) as events:
        go_on_after_forgetting(tmp_path, events, log)
    found = ExampleLog.open(tmp_path)
    truth = join_slowly(log, SETTINGS, ZONE)
    assert found.begin == 40
    assert found.end == len(truth.examples)
    assert [row[3] for row in as_tuples(found.read(40, 10**6))] == [
        row[3] for row in truth.examples[40:]
    ]
    with pytest.raises(LineageError, match="forgotten"):
        found.read(39, 1)
    assert forget_examples(tmp_path, 10**9) == found.manifest.shards[-1].start


def go_on_after_forgetting(tmp_path: Path, events: EventLog, log: list[LogEvent]) -> None:
    with open_joiner(tmp_path, events, SETTINGS, ZONE) as joiner:
        assert joiner is not None
        joiner.join_next(None)
        assert joiner.manifest.end > 80
        assert forget_examples(tmp_path, 79) == 40
        store(tmp_path, log[300:])
        joiner.join_next(None)


def test_events_that_were_forgotten_before_they_were_joined(tmp_path: Path) -> None:
    log = without_repeats(random_log(5, 300))
    store(tmp_path, log)
    with open_event_log(tmp_path) as events:
        assert events.forget(100) > 0
    with pytest.raises(LineageError, match="forgotten before they were joined"):
        join(tmp_path, None)


def test_another_writer_is_noticed(tmp_path: Path, log: list[LogEvent]) -> None:
    store(tmp_path, log)
    with (
        open_event_log(tmp_path) as events,
        open_joiner(tmp_path, events, SETTINGS, ZONE) as joiner,
    ):
        assert joiner is not None
        (tmp_path / "examples" / ".writer.lock").unlink()  # as on a file system without flock
        join(tmp_path, None)
        with pytest.raises(LineageError, match="another one writes"):
            joiner.join_next(None)


def test_too_much_to_remember_is_refused(tmp_path: Path, log: list[LogEvent]) -> None:
    store(tmp_path, log)
    join(tmp_path, None, batch_events=20, max_state_events=10**6)
    before = files(tmp_path)
    with pytest.raises(NotReady, match="max_state_events"):
        join(tmp_path, log[-1].received_ms + LATER_MS, max_state_events=1)
    assert files(tmp_path) == before


def test_an_altered_state_is_refused(tmp_path: Path, log: list[LogEvent]) -> None:
    store(tmp_path, log)
    manifest = join(tmp_path, None)
    assert manifest.state is not None
    path = tmp_path / "examples" / manifest.state.name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtifact, match="checksum"):
        join(tmp_path, None)


@pytest.mark.parametrize("name", ["examples-1", f"examples-{FORMAT_VERSION}"])
def test_what_an_earlier_version_joined_is_read_and_gone_on_with(
    tmp_path: Path, repository: Path, name: str
) -> None:
    golden = repository / "tests" / "golden" / name
    data_path = shutil.copytree(golden, tmp_path / "data")
    before = ExampleLog.open(data_path)
    assert (before.event_offset, before.end > 0) == (100, True)
    join(data_path, None)
    found = ExampleLog.open(data_path)
    rows = [str(row) for row in as_tuples(found.read(0, found.end))]
    assert rows == msgspec.json.decode((golden / "rows.json").read_bytes())
