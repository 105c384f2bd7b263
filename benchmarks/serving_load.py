"""Load for a server of one project: wrk with kept connections, and what it saw."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Load", "Server", "cpu_s", "drive", "memory_bytes", "running"]

_SCRIPT: Final = """
local users = {%(users)s}
local requests, number = {}, 0
local headers = {["Content-Type"] = "application/json", ["X-API-Key"] = "%(key)s"}
init = function(args)
  for row, user in ipairs(users) do
    requests[row] = wrk.format("POST", "/v1/retrieve", headers,
      '{"user_id": ' .. user .. ', "k": %(k)d}')
  end
end
request = function()
  number = number %% #requests + 1
  return requests[number]
end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT {\\"requests\\": %%d, \\"seconds\\": %%f, \\"failed\\": %%d, " ..
    "\\"p50_ms\\": %%f, \\"p99_ms\\": %%f}\\n", summary.requests, summary.duration / 1e6,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Load(NamedTuple):
    """What one run of the load generator saw, and the CPU time of the processes that answered."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """A request."""


class Server(NamedTuple):
    """A server that is ready."""

    url: str
    pids: tuple[int, ...]
    """Of the processes that answer."""
    parent: int
    """What was started; the peer answers itself."""
    ready_s: float
    """From its start until it was ready."""


@contextlib.contextmanager
def running(command: Sequence[str], cores: Sequence[int]) -> Iterator[Server]:
    """A server on these cores that prints a JSON object with its `url`; killed at the end."""
    began = time.perf_counter()
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{command[0]} ended before it served")
        text += line
    try:
        url = json.loads(text)["url"]
        pids = _ready(url) or (process.pid,)
        yield Server(url, pids, process.pid, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def _ready(url: str) -> tuple[int, ...]:
    """Wait for `/readyz`; return the workers that it names."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            connection.request("GET", "/readyz")
            reply = connection.getresponse()
            found = json.loads(reply.read())
            connection.close()
            if reply.status == 200:
                return tuple(worker["pid"] for worker in found.get("workers", []))
        time.sleep(0.1)


def drive(
    server: Server,
    users: Sequence[int],
    *,
    k: int,
    key: str,
    connections: int,
    seconds: float,
    cores: Sequence[int],
    folder: Path,
) -> Load:
    """Ask for these users in turn over kept connections, as fast as answers come."""
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.exit("expected the load generator wrk, found none; install it: apt-get install wrk")
    script = folder / "load.lua"
    script.write_text(_SCRIPT % {"users": ", ".join(map(str, users)), "key": key, "k": k})
    duration = f"-d{max(1, round(seconds))}s"
    options = ["-t1", f"-c{connections}", duration, "--timeout", "30s", "-s", str(script)]
    before_s = cpu_s(server.pids)
    printed = subprocess.run(
        ["taskset", "--cpu-list", ",".join(map(str, cores)), wrk, *options, server.url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    spent_s = cpu_s(server.pids) - before_s
    (line,) = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    found = json.loads(line.removeprefix("RESULT "))
    if found["failed"] or not found["requests"]:
        sys.exit(f"expected every request to be answered, found {found}")
    return Load(
        requests_per_s=found["requests"] / found["seconds"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        cpu_us=spent_s / found["requests"] * 1e6,
    )


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU time that processes have used, of the user and of the kernel for them."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def memory_bytes(server: Server) -> int:
    """Return the memory of all processes; a page that several map counts once in all."""
    lines = [
        line
        for pid in {server.parent, *server.pids}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    ]
    return sum(int(line.split()[1]) for line in lines) * 1024
