"""What `twotower doctor` finds on a machine that is well, and on one that is not."""

from __future__ import annotations

import json
import resource
import socket
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from test_publishing_generation import publish_small
from toy import write_project
from twotower import doctor
from twotower.cli import app as cli
from twotower.config import Project
from twotower.doctor import Finding, examine
from twotower.overrides import FLAGS
from twotower.publishing.store import ModelStore


@pytest.fixture
def project(tmp_path: Path) -> Project:
    token = FLAGS.set(["serving.port=0"])
    made = write_project(tmp_path, num_days=1)
    FLAGS.reset(token)
    return made


def findings(project: Project | None) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(project)}


def test_a_machine_that_is_well(project: Project) -> None:
    found = findings(project)
    assert [finding for finding in found.values() if finding.verdict == "bad"] == []
    assert "numpy" in found["packages: core"].found
    assert found["data folder"].verdict == "good"
    assert found["live generation"].found == "none"
    assert not project.data_path.exists()


def test_without_a_project_only_the_machine_is_examined() -> None:
    assert "python" in findings(None)
    assert "disk" not in findings(None)


def test_what_is_live_is_named_or_what_is_wrong_with_it(project: Project) -> None:
    store = ModelStore(project.data_path)
    path = publish_small(store).path
    store.activate("g-000001")
    assert "g-000001" in findings(project)["live generation"].found
    (path / "manifest.json").chmod(0o644)
    (path / "manifest.json").write_bytes(b"{}")
    found = findings(project)["live generation"]
    assert (found.verdict, "altered" in found.found) == ("bad", True)


def test_an_activation_in_the_future_is_a_wrong_clock(project: Project) -> None:
    store = ModelStore(project.data_path, clock=lambda: 4e9)
    publish_small(store)
    store.activate("g-000001")
    found = findings(project)["live generation"]
    assert (found.verdict, found.advice) == ("warning", "set this machine's clock")


def test_a_folder_that_cannot_be_written_is_bad(project: Project) -> None:
    project.data_path.write_text("a file stands in the way")

    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tempfile, "TemporaryDirectory", refuse)
        found = findings(project)
    assert found["data folder"].verdict == "bad"
    assert found["clock"].verdict == "warning"


def test_a_full_disk_a_low_limit_and_a_missing_package_are_found(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 1 << 80)
    monkeypatch.setattr(doctor, "_MIN_MAPS", 1 << 60)
    monkeypatch.setattr(doctor, "_PACKAGES", {"serve": ("no-such-package",)})
    monkeypatch.setattr(resource, "getrlimit", lambda what: (64, 64))
    found = findings(project)
    assert found["disk"].verdict == "bad"
    assert found["open files"].verdict == "warning"
    assert "no-such-package missing" in found["packages: serve"].found
    assert "twotower[serve]" in found["packages: serve"].advice
    assert found["memory maps"].verdict == "warning"


def test_a_port_in_use_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        token = FLAGS.set([f"serving.port={server.getsockname()[1]}"])
        project = write_project(tmp_path, num_days=1)
        FLAGS.reset(token)
        assert findings(project)["port"].verdict == "warning"


def test_the_command_ends_with_1_where_something_is_bad(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["doctor", "--config", str(project.path)]
    done = CliRunner().invoke(cli.app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "what to do" in done.stdout
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 1 << 80)
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    assert done.exit_code == 1
    assert {entry["check"]: entry["verdict"] for entry in json.loads(done.stdout)}["disk"] == "bad"
