"""What holds for every test: one thread, no network, fixed seeds, and no silent skips.

With `TWOTOWER_REQUIRE_ALL=1`, as in continuous integration, a skipped test is a failed one;
elsewhere a part that is missing is a skip that names it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("twotower", deadline=None, derandomize=True)
settings.load_profile("twotower")

REQUIRE_ALL = os.environ.get("TWOTOWER_REQUIRE_ALL") == "1"


def pytest_configure() -> None:
    """Before numpy, torch or faiss start threads: results must not depend on the machine.

    Nor on a terminal's width, which a console would keep for good.
    """
    os.environ.pop("COLUMNS", None)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit for bit is the CPU's promise


def _refuse_skip(report: Any) -> Any:
    """Turns a skip (an expected failure too) into a failure that says why."""
    if REQUIRE_ALL and report.outcome == "skipped":
        reason = vars(report).pop("wasxfail", report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"TWOTOWER_REQUIRE_ALL=1 allows no skip: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _refuse_skip((yield))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests reach this machine only; a test that needs a package index starts a process."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        is_internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if is_internet and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test connects to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(autouse=True)
def _restore_logger() -> Iterator[None]:
    """The command line sets the package's logger; the next test finds it as it was."""
    logger = logging.getLogger("twotower")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of pyproject.toml."""
    return Path(__file__).parents[1]
