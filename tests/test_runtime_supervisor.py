"""The supervisor restarts what dies, drains in order, and leaves no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_project import FakeClock, is_alive, python, running_supervisor
from serving_project import eventually
from twotower.runtime.child import Child
from twotower.runtime.processes import spawn
from twotower.runtime.settings import RuntimeSettings

SLEEPS = "import signal; signal.pause()"
DRAINS = """
import os, signal, sys, time
def drain(*_):
    print(time.monotonic_ns(), NAME, "told", file=sys.stderr)
    time.sleep(0.05)
    print(time.monotonic_ns(), NAME, "done", file=sys.stderr)
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
open(NAME, "w").close()
while True: signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("stubborn", "w").close()
while True: signal.pause()
"""
QUICK = RuntimeSettings(first_pause_s=0.05, max_pause_s=0.2)


def drains(name: str) -> str:
    return f"NAME = {name!r}\n{DRAINS}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_dies_is_started_again_and_counted(here: Path) -> None:
    with running_supervisor(here, [python("a", SLEEPS), python("b", SLEEPS)], QUICK) as up:
        steady = up.running_child("b")
        for restarts in (1, 2):
            again = up.kill_child("a")
            assert (again.restarts, again.last_exit) == (restarts, "SIGKILL")
        assert up.running_child("b").pid == steady.pid
        assert up.stop() == 0
        status = up.status()
        assert status is not None
        assert {child.state for child in status.processes} == {"stopped"}
    log = (here / "up.log").read_text()
    assert log.count("process_restarted name=a") == 2
    assert "process_died name=a" in log


def test_pauses_grow_to_a_limit_and_begin_again_after_a_steady_run(here: Path) -> None:
    settings = RuntimeSettings(first_pause_s=1.0, max_pause_s=3.0, steady_s=60.0)
    time = FakeClock()
    child = Child(python("a", "raise SystemExit(7)"), settings, time.clock)
    pauses = []
    for _ in range(4):
        assert child.look()
        assert child.is_running
        eventually(child.look)
        pauses.append(child.due_in_s())
        assert child.status.last_exit == "7"
        assert not child.look(), "it was started before its pause was over"
        time.move(pauses[-1] or 0.0)
    assert pauses == [1.0, 2.0, 3.0, 3.0]
    child.look()
    time.move(60.0)
    eventually(child.look)
    assert child.due_in_s() == 1.0
    assert child.status.restarts == 4


def test_processes_drain_one_after_the_other_in_the_order_of_the_table(here: Path) -> None:
    names = ["serve", "collect", "join"]
    with running_supervisor(here, [python(name, drains(name)) for name in names]) as up:
        eventually(lambda: all((here / name).exists() for name in names))
        assert up.stop() == 0
    lines = [line.split() for line in (here / "up.log").read_text().splitlines()]
    told = [tuple(line[1:]) for line in sorted(lines) if line[0].isdigit()]
    assert told == [(name, what) for name in names for what in ("told", "done")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_drain_too(here: Path, number: int) -> None:
    with running_supervisor(here, [python("a", drains("a"))]) as up:
        eventually((here / "a").exists)
        assert up.stop(number) == 0
    assert "a done" in (here / "up.log").read_text()


def test_what_does_not_stop_is_killed_and_the_exit_code_says_so(here: Path) -> None:
    settings = RuntimeSettings(stop_timeout_s=2.0)
    table = [python("a", STUBBORN), python("b", drains("b"))]
    with running_supervisor(here, table, settings) as up:
        eventually(lambda: (here / "stubborn").exists() and (here / "b").exists())
        stubborn = up.running_child("a").pid
        assert up.stop() == 1
        assert stubborn is not None
        assert not is_alive(stubborn)
    assert "b done" in (here / "up.log").read_text(), "the others were not drained"


def test_a_second_signal_kills_what_is_left(here: Path) -> None:
    with running_supervisor(here, [python("a", STUBBORN)]) as up:
        eventually((here / "stubborn").exists)
        up.process.send_signal(signal.SIGTERM)
        eventually(lambda: (s := up.status()) and s.state == "stopping")
        assert up.stop() == 1


def test_a_killed_supervisor_leaves_no_orphan(here: Path) -> None:
    table = [python("a", STUBBORN), python("b", SLEEPS)]
    with running_supervisor(here, table) as up:
        eventually((here / "stubborn").exists)
        pids = [up.running_child(name).pid for name in ("a", "b")]
        up.process.kill()
        up.process.wait()
        try:
            eventually(lambda: not any(is_alive(pid) for pid in pids if pid), deadline_s=10.0)
        finally:
            for pid in pids:
                if pid and is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


def test_a_process_whose_supervisor_died_before_it_began_does_not_begin(here: Path) -> None:
    from twotower.runtime import processes

    tether = Path(processes.__file__).with_name("tether.py")
    somebody_else = str(os.getppid())
    command = [sys.executable, str(tether), somebody_else, "touch", str(here / "began")]
    assert subprocess.run(command, check=False).returncode == 1
    assert not (here / "began").exists()


def test_signals_reach_a_process_although_the_supervisor_blocks_them(here: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = spawn(python("a", drains("a")))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    eventually((here / "a").exists)
    process.terminate()
    assert process.wait(30) == 0


def test_what_cannot_be_started_is_tried_again_later(here: Path) -> None:
    time = FakeClock()
    child = Child(python("a", SLEEPS), QUICK, time.clock)
    child._spec = child._spec._replace(command=("x" * 200_000,))  # longer than an argument may be
    child.look()
    assert not child.is_running
    assert child.due_in_s() == pytest.approx(0.05)
