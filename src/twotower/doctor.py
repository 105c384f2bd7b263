"""What this machine has and lacks for a project: the checks of `twotower doctor`.

Nothing is left behind: the probe file in the data folder is removed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import msgspec

from twotower.config import Project
from twotower.errors import TwoTowerError
from twotower.publishing.store import ModelStore
from twotower.serving.profiles import look_up_one

__all__ = ["Finding", "examine"]

Verdict = Literal["good", "warning", "bad"]

_PACKAGES: Final = {
    "serve": ("onnxruntime", "faiss-cpu"),
    "data": ("polars", "pyarrow", "xxhash"),
    "up": ("apscheduler",),
    "train": ("torch", "onnx", "safetensors"),
    "baselines": ("implicit", "scipy", "threadpoolctl"),
}
_CORE: Final = ("twotower", "numpy", "msgspec", "typer", "rich")
_MIN_FREE_BYTES: Final = 1 << 30
_MIN_MAPS: Final = 65_530
_MIN_FILES: Final = 1024
_MAX_CLOCK_ERROR_S: Final = 2.0
_MAX_MAPS_FILE: Final = Path("/proc/sys/vm/max_map_count")


class Finding(msgspec.Struct, frozen=True):
    """What one check found, and what to do where that is not good."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(project: Project | None) -> list[Finding]:
    """Return what every check found; those of a project are left out without one."""
    findings = [_python(), *_packages(), _map_limit(), _file_limit()]
    if project is not None:
        folder = _nearest_folder(project.data_path)
        findings += [_writable(project.data_path, folder), _disk(project, folder)]
        findings += [_clock(folder), _live(project), _port(project), _profiles(project)]
    return findings


def _python() -> Finding:
    return Finding("python", "good", f"{platform.python_version()} on {platform.platform()}")


def _packages() -> Iterator[Finding]:
    """Yield one finding for the core and one for each extra."""
    for extra, packages in {"core": _CORE, **_PACKAGES}.items():
        found = {package: _version(package) for package in packages}
        missing = [package for package, number in found.items() if number is None]
        words = ", ".join(f"{package} {number or 'missing'}" for package, number in found.items())
        advice = f"where it is wanted: pip install 'twotower[{extra}]'" if missing else ""
        yield Finding(f"packages: {extra}", "warning" if missing else "good", words, advice)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _map_limit() -> Finding:
    """A generation is mapped, some tens of files each; two are mapped while one is swapped."""
    try:
        limit = int(_MAX_MAPS_FILE.read_text())
    except (OSError, ValueError):
        return Finding("memory maps", "warning", "the limit is not known on this system")
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    words = f"{limit:,} a process" + (
        "" if space == resource.RLIM_INFINITY else f", at most {space:,} bytes of addresses"
    )
    if space != resource.RLIM_INFINITY:
        return Finding("memory maps", "warning", words, "lift it: ulimit -v unlimited")
    advice = f"raise it: sysctl -w vm.max_map_count={_MIN_MAPS}" if limit < _MIN_MAPS else ""
    return Finding("memory maps", "warning" if advice else "good", words, advice)


def _file_limit() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_low = limit != resource.RLIM_INFINITY and limit < _MIN_FILES
    advice = f"raise it: ulimit -n {_MIN_FILES}" if is_low else ""
    return Finding("open files", "warning" if is_low else "good", f"{limit:,} a process", advice)


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _writable(data_path: Path, folder: Path) -> Finding:
    """Write, fsync and rename a probe, as a publish does."""
    try:
        with _probe(folder) as path, path.open("wb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        advice = "give this user the right to write there, or set data_dir to another folder"
        return Finding("data folder", "bad", f"{folder}: {error}", advice)
    words = str(data_path) if folder == data_path else f"{data_path}, to be made in {folder}"
    return Finding("data folder", "good", f"{words}: can be written")


@contextlib.contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as made:
        yield Path(made) / "probe"


def _disk(project: Project, folder: Path) -> Finding:
    """Room for two more generations like the live one, a gigabyte at least."""
    needed = max(_MIN_FREE_BYTES, 2 * _live_bytes(project))
    free = shutil.disk_usage(folder).free
    advice = "make room: twotower generations prune" if free < needed else ""
    words = f"{free:,} bytes free, {needed:,} wanted"
    return Finding("disk", "bad" if advice else "good", words, advice)


def _live_bytes(project: Project) -> int:
    try:
        manifest = ModelStore(project.data_path).open(verify=False).manifest
    except TwoTowerError:
        return 0
    return sum(entry.bytes for entry in manifest.files.values())


def _clock(folder: Path) -> Finding:
    """Compare this machine's clock with that of the disk, and with the last activation."""
    try:
        with _probe(folder) as path:
            path.write_bytes(b"")
            error_s = path.stat().st_mtime - time.time()
    except OSError as error:
        return Finding("clock", "warning", f"cannot be compared: {error}")
    words = f"{datetime.now().astimezone().isoformat(timespec='seconds')}"
    if abs(error_s) > _MAX_CLOCK_ERROR_S:
        advice = "set both by NTP; order never depends on it, but people read these times"
        return Finding("clock", "warning", f"{words}, the disk's is {error_s:+.1f} s off", advice)
    return Finding("clock", "good", words)


def _profiles(project: Project) -> Finding:
    """Look somebody up in the profile store; it need not know him."""
    settings = project.serving.profiles
    began = time.perf_counter()
    try:
        notes = asyncio.run(look_up_one(settings, "doctor")).notes
    except TwoTowerError as error:
        return Finding("profile store", "bad", str(error))
    took_ms = (time.perf_counter() - began) * 1000
    if notes:
        advice = "start Redis, or correct serving.profiles.url; until then users have old profiles"
        return Finding("profile store", "warning", ", ".join(notes), advice)
    words = f"redis: answered in {took_ms:.1f} ms, connecting included"
    return Finding("profile store", "good", words if settings.store == "redis" else settings.store)


def _live(project: Project) -> Finding:
    store = ModelStore(project.data_path)
    try:
        activation = store.live()
        if activation is None:
            return Finding("live generation", "warning", "none", "make one: twotower full")
        store.open_live(verify=False)
    except TwoTowerError as error:
        return Finding("live generation", "bad", str(error), "twotower generations roll-back")
    activated = datetime.fromisoformat(activation.activated_at.replace("Z", "+00:00"))
    if activated.timestamp() > time.time() + _MAX_CLOCK_ERROR_S:
        words = f"{activation.generation}, activated at {activation.activated_at}, in the future"
        return Finding("live generation", "warning", words, "set this machine's clock")
    return Finding("live generation", "good", f"{activation.generation}, since {activated}")


def _port(project: Project) -> Finding:
    host, port = project.serving.host, project.serving.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:
        advice = "set serving.port to another one, unless this project's server is what holds it"
        return Finding("port", "warning", f"{host}:{port}: {error.strerror or error}", advice)
    return Finding("port", "good", f"{host}:{port} is free")
