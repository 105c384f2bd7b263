"""Requests made from the server's own OpenAPI document: no failure, no answer beside its schema.

`make test-api` makes about 50,000; here there are about 2,000. It has not been run whole: that it
takes some 25 minutes is an estimate from 23 ms of processor time that each of 1,280 more requests
took the client. `make test-api API_EXAMPLES=12` makes 2,700.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector_project import free_port, kill, start_collector
from serving_project import RunningServer, running_server, write_project
from test_serving_retriever import publish_live
from tiny_checkpoint import tiny_checkpoint

EXAMPLES = os.environ.get("TWOTOWER_API_EXAMPLES")
"""Of each operation, beside those that every schema is covered with; 2,000 are 50,000 in all."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With text IDs, because any text is one, two generations, and a collector behind it."""
    folder, port = tmp_path_factory.mktemp("api"), free_port()
    for seed in (0, 1):
        checkpoint = tiny_checkpoint(kind="str", has_rich_items=True, seed=seed)
        publish_live(folder / "twotower-data", checkpoint)
    config = write_project(folder, more=f"[collector]\nport = {port}")
    collector = start_collector(config, port)
    try:
        with running_server(config) as running:
            yield running
    finally:
        kill(collector)


def test_no_request_breaks_the_service_or_its_document(
    server: RunningServer, tmp_path: Path
) -> None:
    options = ["--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
    chosen = ["--checks", "all", "--continue-on-failure", "--max-examples", EXAMPLES or "3"]
    # at night another seed, which is printed, and a machine of its own
    seed = ["--max-response-time", "1"] if EXAMPLES else ["--seed", "1"]
    command = [sys.executable, "-m", "schemathesis.cli", *options, "run", *chosen, *seed]
    workers = server.worker_pids()
    done = subprocess.run(
        [*command, f"{server.url}/openapi.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,  # it leaves files behind
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated is not None
    assert int(generated[1].replace(",", "")) >= (25 * int(EXAMPLES) if EXAMPLES else 2_000)
    assert server.metric("twotower_http_requests_total", code="500") == 0
    assert server.worker_pids() == workers
    assert server.ask("GET", "/healthz").status == 200
