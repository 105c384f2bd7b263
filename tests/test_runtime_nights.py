"""Nights: when one is due, which day it trains, and what becomes of it."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from runtime_project import FakeClock, python
from serving_project import eventually, publish_marked
from toy import write_project
from twotower.data.importing import import_tables
from twotower.errors import CorruptArtifact
from twotower.publishing.store import ModelStore
from twotower.runtime.night_run import NightRunner
from twotower.runtime.nights import (
    NightBook,
    NightRecord,
    Outcome,
    night_to_run,
    trainable_days,
    trained_day,
)
from twotower.runtime.processes import ProcessSpec
from twotower.runtime.schedule import NightSchedule
from twotower.runtime.settings import RuntimeSettings

DAY_S = 86_400.0


def seconds(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def record(day: str, outcome: Outcome, attempts: int = 1) -> NightRecord:
    return NightRecord(day=day, outcome=outcome, attempts=attempts, started_at_ms=0)


class TestSchedule:
    def test_a_night_is_due_at_its_local_time_for_the_day_before(self) -> None:
        schedule = NightSchedule("03:00", "Europe/Paris")
        before = seconds("2024-07-10 02:59:59", "Europe/Paris")
        assert schedule.last(before).day == "2024-07-08"
        assert schedule.last(before + 1).day == "2024-07-09"
        assert schedule.last(before + 1).at_s == before + 1
        assert schedule.next(before) == schedule.last(before + 1)
        assert schedule.next(before + 1).day == "2024-07-10"

    def test_another_zone_has_another_day(self) -> None:
        now = seconds("2024-07-10 02:30")
        assert NightSchedule("03:00", "UTC").last(now).day == "2024-07-08"
        assert NightSchedule("03:00", "Asia/Tokyo").last(now).day == "2024-07-09"
        assert NightSchedule("03:00", "America/New_York").last(now).day == "2024-07-08"

    @pytest.mark.parametrize("at", ["00:00", "02:30", "03:00", "23:59"])
    @pytest.mark.parametrize("zone", ["Europe/Paris", "America/Sao_Paulo", "Australia/Lord_Howe"])
    def test_every_day_of_a_year_is_due_once_in_order(self, at: str, zone: str) -> None:
        schedule = NightSchedule(at, zone)
        now, dues = seconds("2018-01-01 12:00", zone), []
        for _ in range(366):
            dues.append(schedule.next(now))
            now = dues[-1].at_s
            assert schedule.last(now) == dues[-1]
            assert schedule.last(now - 1.0).at_s < now
        first = datetime.fromisoformat(dues[0].day)
        expected = [(first + timedelta(days=n)).date().isoformat() for n in range(366)]
        assert [due.day for due in dues] == expected
        pauses = [(b.at_s - a.at_s) / 3600 for a, b in itertools.pairwise(dues)]
        assert min(pauses) >= 23
        assert max(pauses) <= 25


class TestWhichNight:
    @pytest.fixture
    def book(self, tmp_path: Path) -> NightBook:
        return NightBook(tmp_path)

    DAYS = ("2024-03-01", "2024-03-02", "2024-03-03")

    def choose(self, book: NightBook, last: str, trained: str | None) -> str | None:
        return night_to_run(last, self.DAYS, trained, book, max_attempts=2)

    def test_the_day_that_ended_is_trained(self, book: NightBook) -> None:
        assert self.choose(book, "2024-03-02", "2024-03-01") == "2024-03-02"

    def test_what_is_trained_is_not_trained_again(self, book: NightBook) -> None:
        assert self.choose(book, "2024-03-02", "2024-03-02") is None

    def test_a_day_that_has_not_ended_waits(self, book: NightBook) -> None:
        assert self.choose(book, "2024-02-29", None) is None

    def test_a_day_that_is_not_complete_waits(self, book: NightBook) -> None:
        assert self.choose(book, "2024-03-04", "2024-03-03") is None

    def test_missed_nights_are_made_up_for_in_one(self, book: NightBook) -> None:
        assert self.choose(book, "2024-03-04", "2024-03-01") == "2024-03-03"

    def test_a_refused_night_is_trained_with_the_next_one(self, book: NightBook) -> None:
        book.write(record("2024-03-02", "refused"))
        assert self.choose(book, "2024-03-02", "2024-03-01") is None
        assert self.choose(book, "2024-03-03", "2024-03-01") == "2024-03-03"

    def test_a_rolled_back_night_is_trained_with_the_next_one(self, book: NightBook) -> None:
        book.write(record("2024-03-02", "live"))
        assert self.choose(book, "2024-03-02", "2024-03-01") is None
        assert self.choose(book, "2024-03-03", "2024-03-01") == "2024-03-03"

    def test_a_failed_night_is_tried_so_often_and_an_interrupted_one_again(
        self, book: NightBook
    ) -> None:
        book.write(record("2024-03-02", "failed", attempts=1))
        assert self.choose(book, "2024-03-02", "2024-03-01") == "2024-03-02"
        book.write(record("2024-03-02", "failed", attempts=2))
        assert self.choose(book, "2024-03-02", "2024-03-01") is None
        book.write(record("2024-03-02", "interrupted", attempts=2))
        assert self.choose(book, "2024-03-02", "2024-03-01") == "2024-03-02"


def test_the_book_is_there_for_the_next_supervisor(tmp_path: Path) -> None:
    book = NightBook(tmp_path)
    for number in range(1, 29):
        book.write(record(f"2024-02-{number:02d}", "live"))
    assert NightBook(tmp_path).all() == book.all()
    assert len(book.all()) == 28
    (tmp_path / "runtime" / "nights.json").write_text("{")
    with pytest.raises(CorruptArtifact, match=r"nights\.json is damaged"):
        NightBook(tmp_path)


def test_days_come_from_the_import_and_the_trained_one_from_what_is_live(tmp_path: Path) -> None:
    project = write_project(tmp_path, num_days=2)
    assert trainable_days(project.data_path) == ()
    assert trained_day(project.data_path) is None
    import_tables(project)
    assert trainable_days(project.data_path) == ("2024-03-01", "2024-03-02")
    store = ModelStore(project.data_path)
    name = publish_marked(store, 1)
    assert trained_day(project.data_path) is None
    store.activate(name)
    assert trained_day(project.data_path) == store.open(name).manifest.window.through_day


class Nights:
    """A runner over a toy import, whose steps are small programs."""

    def __init__(self, folder: Path, code: str, start: str, attempts: int = 2) -> None:
        self.folder = folder
        project = write_project(folder, num_days=2, history=False)
        import_tables(project)
        self.data_path = project.data_path
        self.code = code
        self.time = FakeClock(seconds(start))
        self.settings = RuntimeSettings(night_at="03:00", night_attempts=attempts)
        self.runner = self.again()

    def again(self) -> NightRunner:
        """As after a restart of the supervisor."""
        schedule = NightSchedule(self.settings.night_at, "UTC")
        clock = self.time.clock
        self.runner = NightRunner(self.data_path, self.settings, schedule, self.steps, clock)
        return self.runner

    def steps(self, day: str) -> tuple[ProcessSpec, ...]:
        log = f"open({str(self.folder / 'ran')!r}, 'a')"
        return (
            python("full", f"{log}.write('full {day}\\n'); {self.code}"),
            python("prune", f"{log}.write('prune\\n')"),
        )

    def run(self) -> None:
        """Look until no step runs."""
        self.runner.look()
        while self.runner.state().running:
            eventually(self.runner.look)

    def ran(self) -> list[str]:
        path = self.folder / "ran"
        return path.read_text().splitlines() if path.exists() else []

    def outcomes(self) -> list[tuple[str, str, int]]:
        return [(n.day, n.outcome, n.attempts) for n in NightBook(self.data_path).all()]


def test_a_night_begins_at_its_time_and_once(tmp_path: Path) -> None:
    nights = Nights(tmp_path, "pass", "2024-03-02 02:59:50")
    nights.run()
    assert nights.ran() == []
    assert nights.runner.state().next_due_at_ms == seconds("2024-03-02 03:00") * 1000
    nights.time.move(10)
    nights.run()
    assert nights.ran() == ["full 2024-03-01", "prune"]
    assert nights.outcomes() == [("2024-03-01", "live", 1)]
    nights.time.move(60)
    nights.run()
    nights.again()
    nights.run()
    assert nights.ran() == ["full 2024-03-01", "prune"], "it ran again"
    nights.time.move(DAY_S)
    nights.run()
    assert nights.ran()[2:] == ["full 2024-03-02", "prune"]


def test_a_day_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    nights = Nights(tmp_path, "pass", "2024-03-04 03:00")
    nights.run()
    assert nights.ran() == ["full 2024-03-02", "prune"], "what is complete is trained"
    nights.time.move(60)
    nights.run()
    assert nights.runner.state().waits_for == "2024-03-03"
    assert len(nights.ran()) == 2


def test_a_refused_night_is_not_tried_again_but_tidied_up_after(tmp_path: Path) -> None:
    nights = Nights(tmp_path, "raise SystemExit(3)", "2024-03-02 03:00")
    nights.run()
    nights.time.move(3600)
    nights.run()
    assert nights.ran() == ["full 2024-03-01", "prune"]
    assert nights.outcomes() == [("2024-03-01", "refused", 1)]


def test_a_failed_night_is_tried_again_after_a_pause_and_given_up(tmp_path: Path) -> None:
    nights = Nights(tmp_path, "raise SystemExit(1)", "2024-03-02 03:00")
    nights.run()
    nights.time.move(299)
    nights.run()
    assert nights.ran() == ["full 2024-03-01"]
    nights.time.move(1)
    nights.run()
    for _ in range(3):
        nights.time.move(600)
        nights.run()
    assert nights.ran() == ["full 2024-03-01"] * 2
    assert nights.outcomes() == [("2024-03-01", "failed", 2)]


def test_a_night_that_was_told_to_stop_goes_on_and_does_not_count(tmp_path: Path) -> None:
    nights = Nights(tmp_path, "import signal; signal.pause()", "2024-03-02 03:00")
    nights.runner.look()
    state = nights.runner.state()
    assert (state.running, state.day) == ("full", "2024-03-01")
    nights.runner.signal(15)
    eventually(nights.runner.has_stopped)
    assert nights.outcomes() == [("2024-03-01", "interrupted", 0)]
    nights.code = "pass"
    nights.again()
    nights.run()
    assert nights.outcomes() == [("2024-03-01", "live", 1)]


def test_a_night_that_took_the_supervisor_down_counts(tmp_path: Path) -> None:
    nights = Nights(tmp_path, "import signal; signal.pause()", "2024-03-02 03:00")
    nights.runner.look()
    assert nights.outcomes() == [("2024-03-01", "running", 1)]
    nights.runner.signal(9)  # as the kernel does at the supervisor's death
    killed = nights.runner
    nights.code = "raise SystemExit(1)"
    nights.again()
    assert nights.outcomes() == [("2024-03-01", "interrupted", 1)]
    nights.run()
    assert nights.outcomes() == [("2024-03-01", "failed", 2)]
    eventually(killed.has_stopped)


def test_a_damaged_manifest_is_said_and_looked_at_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nights = Nights(tmp_path, "pass", "2024-03-02 03:00")
    current = nights.data_path / "generations" / "CURRENT"
    current.parent.mkdir()
    current.write_text("{")
    nights.run()
    assert "night_cannot_go_on" in caplog.text
    current.unlink()
    nights.time.move(nights.settings.night_retry_s)
    nights.run()
    assert nights.outcomes() == [("2024-03-01", "live", 1)]
