"""From a project to its supervisor: what `twotower up` would start, and starting it."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from twotower.config import Project
from twotower.durable import exclusive
from twotower.runtime.child import Clock
from twotower.runtime.files import LOCK, runtime_folder
from twotower.runtime.night_run import NightRunner
from twotower.runtime.processes import ProcessSpec, night_table, process_table
from twotower.runtime.schedule import NightSchedule
from twotower.runtime.supervisor import Supervisor
from twotower.serving.reach import check_reach

__all__ = ["PlannedNights", "PlannedProcess", "UpPlan", "plan_up", "run_up"]

_LOGGER: Final = logging.getLogger("twotower")
_LOCK_TIMEOUT_S: Final = 2.0


class PlannedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that would be kept alive."""

    name: str
    url: str | None
    command: list[str]


class PlannedNights(msgspec.Struct, frozen=True, kw_only=True):
    """What each night would run."""

    at: str
    time_zone: str
    next_due: str
    """ISO 8601, local time."""
    commands: list[list[str]]


class UpPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `twotower up` would start."""

    processes: list[PlannedProcess]
    night: PlannedNights | None
    options: list[str]


def plan_up(project: Project, options: Sequence[str] = (), *, insecure: bool = False) -> UpPlan:
    """Return what would be started; nothing is.

    Raises:
        ConfigError: an address is reachable by other machines, there is no API key and `insecure`
            was not given; or ports do not fit.
        MissingExtra: APScheduler is not installed, and nights are wanted.
    """
    table = process_table(project, options, insecure=insecure)
    urls: dict[str, str] = {}
    for name, host, port in (
        ("serve", project.serving.host, project.serving.port),
        ("collect", project.collector.host, project.collector.port),
    ):
        if name in project.runtime.processes:
            check_reach(host, project.data_path, insecure=insecure)
            urls[name] = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return UpPlan(
        processes=[
            PlannedProcess(name=spec.name, url=urls.get(spec.name), command=list(spec.command))
            for spec in table
        ],
        night=_plan_nights(project, options) if "full" in project.runtime.processes else None,
        options=list(options),
    )


def _plan_nights(project: Project, options: Sequence[str]) -> PlannedNights:
    due = NightSchedule(project.runtime.night_at, project.time_zone).next(time.time())
    moment = datetime.fromtimestamp(due.at_s, tz=ZoneInfo(project.time_zone))
    return PlannedNights(
        at=project.runtime.night_at,
        time_zone=project.time_zone,
        next_due=moment.isoformat(),
        commands=[list(step.command) for step in night_table(project, due.day, options)],
    )


def run_up(project: Project, plan: UpPlan, clock: Clock | None = None) -> bool:
    """Run what was planned until a signal; return whether all ended well.

    Raises:
        NotReady: another `twotower up` runs this project.
        CorruptArtifact: the records of earlier nights are damaged.
    """
    clock = clock or Clock()
    folder = runtime_folder(project.data_path)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / LOCK, "running `twotower up`", _LOCK_TIMEOUT_S):
        nights = None
        if plan.night is not None:
            nights = NightRunner(
                project.data_path,
                project.runtime,
                NightSchedule(plan.night.at, plan.night.time_zone),
                functools.partial(night_table, project, options=plan.options),
                clock,
            )
        for process in plan.processes:
            if process.url is not None:
                _LOGGER.info("up_address name=%s url=%s", process.name, process.url)
        table = [ProcessSpec(process.name, tuple(process.command)) for process in plan.processes]
        return Supervisor(project.data_path, project.runtime, table, nights, clock).run()
