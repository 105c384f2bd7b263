"""The model store: a folder of generations, one of which is live.

    generations/
      CURRENT               what is live, replaced by an atomic rename
      activations.jsonl     audit: every activation and roll-back
      g-000001/ …           immutable generations
      .staging-g-000007/    a publish that is running, or was killed: swept by the next publish
      .publish.lock  .activate.lock

Two locks, because a roll-back must never wait for a publish. A publish writes aside, fsyncs every
file and every folder, renames, and fsyncs the parent; nothing becomes live by it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, NamedTuple

from twotower.durable import Step, exclusive, fsync_folder
from twotower.errors import CorruptArtifact, GateRefused, LineageError, NotReady, suggestion
from twotower.failpoints import failpoint
from twotower.publishing.activation import (
    Action,
    Activation,
    append_audit,
    read_audit,
    read_current,
    write_current,
)
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import Manifest, check_name, is_name, refusal
from twotower.publishing.staging import Staging

__all__ = ["GENERATIONS", "REMOVED", "STAGING", "ModelStore", "utc_text"]

GENERATIONS: Final = "generations"
STAGING: Final = ".staging-"
REMOVED: Final = ".removed-"


class _How(NamedTuple):
    """How a generation is made live, and what the audit says of it."""

    action: Action
    reason: str
    by: str
    dry_run: bool


class ModelStore:
    """The generations below `data_path`. Safe between processes; reading takes no lock."""

    def __init__(
        self,
        data_path: Path,
        *,
        lock_timeout_s: float = 10.0,
        at_step: Step = failpoint,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Name the store; nothing is read or made yet.

        Args:
            data_path: The project's data folder; the store is its folder `generations`.
            lock_timeout_s: How long an activation waits for another one.
            at_step: Called with the name of every step that a crash can fall after; a test that
                sets `TWOTOWER_FAILPOINT` is killed there.
            clock: Seconds since 1970, for the times that people read.
        """
        self.root = data_path / GENERATIONS
        self._lock_timeout_s = lock_timeout_s
        self.at_step = at_step
        self._clock = clock

    def names(self) -> list[str]:
        """Return the names of all published generations, oldest first."""
        if not self.root.is_dir():
            return []
        found = [name for name in os.listdir(self.root) if is_name(name)]
        return sorted(found, key=lambda name: (len(name), name))

    def manifests(self) -> dict[str, Manifest | CorruptArtifact]:
        """Return the manifest of every generation, or what is wrong with it, oldest first.

        One damaged generation must not hide the others from whoever has to roll back.
        """
        return {name: self._manifest(name) for name in self.names()}

    def _manifest(self, name: str) -> Manifest | CorruptArtifact:
        try:
            return self.open(name, verify=False).manifest
        except CorruptArtifact as error:
            return error

    def live(self) -> Activation | None:
        """Return what is live, None before the first activation.

        Raises:
            CorruptArtifact: `CURRENT` is damaged.
        """
        return read_current(self.root)

    def activations(self) -> list[Activation]:
        """Return every recorded activation and roll-back, oldest first."""
        return read_audit(self.root)

    def open(self, name: str | None = None, *, verify: bool = True) -> Generation:
        """Open the generation `name`, or the live one.

        Raises:
            ConfigError: `name` is not the plain name of a generation.
            NotReady: there is no such generation, or none is live.
            CorruptArtifact: it is damaged, or not the one that was activated.
        """
        if name is not None:
            return Generation.open(self._existing(name), verify=verify)
        return self.open_live(verify=verify)[0]

    def open_live(self, *, verify: bool = True) -> tuple[Generation, Activation]:
        """Open the live generation and return it with the activation that made it live."""
        activation = self.live()
        if activation is None:
            raise NotReady(
                f"no generation is live in {self.root}; publish one with: twotower full; "
                "or make one live with: twotower generations activate NAME"
            )
        generation = Generation.open(self._existing(activation.generation), verify=verify)
        if generation.digest != activation.manifest:
            raise CorruptArtifact(
                f"generation '{generation.name}' is not the one that was activated: its manifest "
                "has another checksum; nothing of it was loaded; activate another generation"
            )
        return generation, activation

    def _existing(self, name: str) -> Path:
        path = self.root / check_name(name)
        if not os.path.lexists(path):
            known = self.names()
            raise NotReady(
                f"there is no generation '{name}'; the last ones published: "
                f"{', '.join(known[-5:]) or 'none'}{suggestion(name, known)}"
            )
        return path

    def activate(
        self,
        name: str,
        *,
        force: bool = False,
        reason: str = "",
        dry_run: bool = False,
        only_after: int | None = None,
        by: str = "",
    ) -> Activation:
        """Verify the generation `name` and make it live; nothing happens if it is live already.

        Args:
            name: A published generation.
            force: Activate it although gates refused it; the audit names them.
            reason: Why, for the audit.
            dry_run: Check everything, change nothing, and return what would be live.
            only_after: Sequence number that must be the current one, 0 before the first: whoever
                was paused or slow cannot undo what was decided since. None for no condition.
            by: Who did it, for the audit; the user number of this process where it is empty.

        Raises:
            GateRefused: a gate refused it, and `force` was not given.
            LineageError: something else became live after `only_after`.
            ConfigError, NotReady, CorruptArtifact: as `open`.
        """
        generation = self.open(name)
        forced = _refused_gates(generation, force)
        with self.activating():
            if only_after is not None:
                self._check_nothing_newer(name, only_after)
            how = _How("activate", reason, by, dry_run)
            return self._make_live(generation, how, forced)

    def _check_nothing_newer(self, name: str, only_after: int) -> None:
        last = self._last()
        if last is not None and last.sequence != only_after:
            raise LineageError(
                f"expected nothing to become live while '{name}' was made, after activation "
                f"{only_after}; found '{last.generation}', activation {last.sequence}, which stays "
                f"live; '{name}' is published: train again from what is live, or overrule with: "
                f"twotower generations activate {name}"
            )

    def roll_back(
        self, *, reason: str = "", dry_run: bool = False, only_from: str | None = None, by: str = ""
    ) -> Activation:
        """Make the generation live again that was live before the current one.

        Rolling back a roll-back therefore returns to where one was. The sequence number grows.

        Args:
            reason: Why, for the audit.
            dry_run: Check everything, change nothing, and return what would be live.
            only_from: Generation that must be live now: whoever is asked twice rolls back once.
            by: Who did it, as for `activate`.

        Raises:
            NotReady: nothing was live before, or it is there no more.
            LineageError: another generation than `only_from` is live.
            CorruptArtifact: it is damaged.
        """
        with self.activating():
            last = self._last()
            if last is None or last.previous is None:
                raise NotReady("no generation was live before the current one; nothing was changed")
            if only_from not in (None, last.generation):
                raise LineageError(
                    f"expected to roll back from '{only_from}', found '{last.generation}' live; "
                    "nothing was changed"
                )
            how = _How("roll_back", reason, by, dry_run)
            return self._make_live(self.open(last.previous), how, [])

    @contextlib.contextmanager
    def activating(self) -> Iterator[None]:
        """Keep every other activation out while the block runs.

        Raises:
            NotReady: another one does not end in time.
        """
        self._make_root()
        lock = self.root / ".activate.lock"
        with exclusive(lock, "activating a generation", self._lock_timeout_s):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every publish and every activation out while the block runs.

        Raises:
            NotReady: a publish is running, or an activation does not end in time.
        """
        with self._publishing(), self.activating():
            yield

    def _publishing(self) -> contextlib.AbstractContextManager[None]:
        self._make_root()
        return exclusive(self.root / ".publish.lock", "publishing", 0.0)

    def _last(self) -> Activation | None:
        """Return `CURRENT`, or the newest audit line where `CURRENT` is damaged or lost."""
        with contextlib.suppress(CorruptArtifact):
            if (current := self.live()) is not None:
                return current
        return max(self.activations(), key=lambda record: record.sequence, default=None)

    def _make_live(self, generation: Generation, how: _How, forced: list[str]) -> Activation:
        last = self._last()
        self.at_step("activate.locked")
        if last is not None and not how.dry_run:
            append_audit(self.root, last)
        if last is not None and last.manifest == generation.digest and self._is_current(last):
            return last
        sequences = [record.sequence for record in [*self.activations(), *([last] if last else [])]]
        activation = Activation(
            generation=generation.name,
            sequence=1 + max(sequences, default=0),
            activated_at=utc_text(self._clock()),
            action=how.action,
            previous=last.generation if last else None,
            manifest=generation.digest,
            forced=forced,
            reason=how.reason,
            by=how.by or f"uid {os.getuid()}",
        )
        if how.dry_run:
            return activation
        activation = write_current(self.root, activation, self._activation_step)
        append_audit(self.root, activation)
        self.at_step("activate.audit")
        return activation

    def _activation_step(self, step: str) -> None:
        self.at_step(f"activate.{step}")

    def _is_current(self, activation: Activation) -> bool:
        try:
            return self.live() == activation
        except CorruptArtifact:
            return False

    @contextlib.contextmanager
    def stage(self) -> Iterator[Staging]:
        """Give a folder to write the next generation into, and remove it unless it was committed.

        Raises:
            NotReady: another publish is running.
        """
        with self._publishing():
            self._sweep()
            name = self._next_name()
            staging = Staging(name, self.root / f"{STAGING}{name}", self.at_step)
            try:
                yield staging
            finally:
                shutil.rmtree(staging.path, ignore_errors=True)

    def _make_root(self) -> None:
        if not self.root.is_dir():
            self.root.mkdir(parents=True)
            fsync_folder(self.root.parent)

    def _sweep(self) -> None:
        for orphan in [*self.root.glob(f"{STAGING}*"), *self.root.glob(f"{REMOVED}*")]:
            if orphan.is_dir() and not orphan.is_symlink():
                shutil.rmtree(orphan)
            else:
                orphan.unlink()
        self.at_step("stage.swept")

    def _next_name(self) -> str:
        known = [*self.names(), *(record.generation for record in self.activations())]
        return f"g-{max((int(name[2:]) for name in known), default=0) + 1:06d}"


def _refused_gates(generation: Generation, force: bool) -> list[str]:
    refused = generation.manifest.refused
    if refused and not force:
        raise GateRefused(
            f"{refusal(refused)}; the live generation is unchanged; '{generation.name}' is kept; "
            f"overrule with: twotower generations activate {generation.name} --force"
        )
    return [result.gate for result in refused]


def utc_text(seconds: float) -> str:
    """Return `seconds` since 1970 as ISO 8601 text in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
