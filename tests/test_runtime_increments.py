"""Increments under the supervisor: a loss that explodes stops them, and restarts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from increment_project import (
    append_examples,
    increment_project,
    poisoned,
    publish_tiny,
    some_examples,
)
from runtime_project import running_up
from serving_project import eventually
from twotower.cli.status import status as show_status
from twotower.publishing.delta import list_deltas
from twotower.runtime.observing import observe

MORE = """
publish_every_s = 0.2
[runtime]
processes = ["increment"]
first_pause_s = 0.05
"""


@pytest.mark.slow
def test_a_loss_that_explodes_stops_publishing_until_the_next_night(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = increment_project(tmp_path, more=MORE, base=poisoned())
    with running_up(project.path, project.data_path) as up:
        first = up.running_child("increment")
        stopped = eventually(lambda: observe(project).increments_stopped)
        assert stopped is not None
        assert (stopped.generation, stopped.offset) == ("g-000001", 0)
        show_status(project.path)
        words = " ".join(capsys.readouterr().out.split())
        assert "increments stopped" in words
        assert "lower" in words
        append_examples(project, some_examples(40, first_offset=200))
        publish_tiny(project, seed=1)  # the next night
        eventually(lambda: list_deltas(project.data_path, "g-000002"))
        assert observe(project).increments_stopped is None
        assert list_deltas(project.data_path, "g-000001") == []
        child = up.child("increment")
        assert child is not None
        assert (child.pid, child.restarts, child.last_exit) == (first.pid, 0, None)
        assert up.stop() == 0
    log = (tmp_path / "up.log").read_text()
    assert log.count('"event":"increments_stopped"') == 1
    assert "process_died" not in log
