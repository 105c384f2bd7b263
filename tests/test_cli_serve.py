"""`twotower serve` refuses what it should before it starts anything."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving_project import write_project
from twotower.cli.app import app
from twotower.config import load_project
from twotower.errors import ConfigError


def serve(config: Path, *options: str) -> None:
    CliRunner().invoke(
        app, ["serve", "-c", str(config), *options], catch_exceptions=False, standalone_mode=False
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_is_not_reachable_from_outside_unless_told(tmp_path: Path, host: str) -> None:
    config = write_project(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing was started; .*--insecure"):
        serve(config, "--host", host, "--port", "0")


def test_the_configured_host_is_checked_too(tmp_path: Path) -> None:
    config = write_project(tmp_path, more='host = "0.0.0.0"')
    with pytest.raises(ConfigError, match=re.escape("can reach '0.0.0.0'")):
        serve(config)


def test_a_name_that_is_no_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an address to listen on"):
        serve(write_project(tmp_path), "--host", "300.1.1.1")


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port"):
            serve(write_project(tmp_path), "--port", str(port))


@pytest.mark.parametrize("line", ["workers = 0", "port = 70000", "k = 3", 'retry_s = "soon"'])
def test_settings_are_checked(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"\$\.serving"):
        load_project(write_project(tmp_path, more=line))


def test_what_is_live_is_looked_at_twice_a_second_at_least(tmp_path: Path) -> None:
    assert load_project(write_project(tmp_path, poll_s=0.5)).serving.poll_s == 0.5
    with pytest.raises(ConfigError, match=r"\$\.serving\.poll_s"):
        load_project(write_project(tmp_path, poll_s=0.6))
