"""A delta: the ID rows touched since a named base generation, published within the day.

    deltas/g-000007/
      d-000001/ d-000002/ …   immutable; each holds what changed since the one before
      .staging-d-000003/      a write that runs, or was killed: the next write removes it
      .write.lock

A delta appears by one rename, after every byte was fsynced. It names its base by name and digest
and the delta before it by digest, so that it applies to one generation and in one order only.
Free of torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.ids import view_ids
from twotower.data.schema import IdArray
from twotower.durable import exclusive, fsync_folder, member_files, read_regular
from twotower.errors import LineageError
from twotower.failpoints import failpoint
from twotower.publishing.delta_files import (
    DeltaFile,
    corrupt_delta,
    read_array,
    write_array,
    write_bytes,
)
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import MANIFEST, MANIFEST_DIGEST, check_name, read_versioned

__all__ = [
    "DELTAS",
    "FORMAT_VERSION",
    "Delta",
    "DeltaFile",
    "DeltaManifest",
    "DeltaMark",
    "DeltaSpan",
    "delta_folder",
    "has_delta",
    "list_deltas",
    "newest_delta",
    "read_deltas",
    "write_delta",
]

DELTAS: Final = "deltas"
FORMAT_VERSION: Final = 1
_STAGING: Final = ".staging-"
_LOCK: Final = ".write.lock"
_NAME: Final = re.compile(r"d-([0-9]{6,12})")
_MAX_MANIFEST_BYTES: Final = 1 << 20
_LOCK_TIMEOUT_S: Final = 10.0


class DeltaSpan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which of the joined examples the rows have learned from, since the delta before."""

    first_offset: int
    through_offset: int
    """After the last one: the next delta begins here."""
    newest_event_time_ms: int
    """Of all examples up to `through_offset`, 0 where there are none: freshness counts from it."""


class DeltaManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a delta is: the file `manifest.json`."""

    format_version: int = FORMAT_VERSION
    base: str
    """Name of the generation that it applies to."""
    base_manifest: str
    """BLAKE2b-256 of that generation's `manifest.json`."""
    sequence: int
    """1, 2, 3 …"""
    previous: str
    """BLAKE2b-256 of the `manifest.json` of the delta before, empty for the first."""
    span: DeltaSpan
    created_at_ms: int
    """By the clock of the machine that wrote it."""
    counts: dict[str, int]
    """users, items, and what else its maker counted."""
    files: dict[str, DeltaFile]


class DeltaMark(NamedTuple):
    """Which delta was applied last, for whoever asks whether the next one follows."""

    sequence: int
    digest: str
    """BLAKE2b-256 of its `manifest.json`."""


class Delta:
    """A delta on disk with its rows in memory; it does not change."""

    def __init__(self, path: Path, manifest: DeltaManifest, digest: str, rows: DeltaRows) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest
        """BLAKE2b-256 of `manifest.json`."""
        self.rows = rows

    @property
    def sequence(self) -> int:
        """1, 2, 3 … within the deltas of its base generation."""
        return self.manifest.sequence

    @property
    def mark(self) -> DeltaMark:
        """What the next delta must follow; holds no rows."""
        return DeltaMark(self.sequence, self.digest)

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Delta:
        """Read the folder `path`, whose last part is the delta's name.

        Raises:
            CorruptArtifact: it is torn, altered, foreign, newer, or another delta's; with
                `verify` every byte was compared with its checksum.
        """
        manifest, digest = _read_manifest(path)
        found = set(member_files(path)[0]) - {MANIFEST, MANIFEST_DIGEST}
        if found != set(manifest.files) or not found <= set(_FILES):
            raise corrupt_delta(
                path, f"expected the files {sorted(manifest.files)}, found {sorted(found)}"
            )
        arrays = {
            name: read_array(path, name, entry, verify) for name, entry in manifest.files.items()
        }
        return cls(path, manifest, digest, _assemble(path, arrays, verify))

    def check_follows(self, base: Generation, previous: Delta | DeltaMark | None) -> Delta:
        """Return this delta if it applies to `base` after `previous`, None for the first.

        Raises:
            LineageError: it was made for another generation, or another delta comes next.
        """
        manifest = self.manifest
        if (manifest.base, manifest.base_manifest) != (base.name, base.digest):
            raise LineageError(
                f"delta {self.sequence} applies to generation '{manifest.base}' "
                f"({manifest.base_manifest[:12]}) but '{base.name}' ({base.digest[:12]}) is asked "
                f"for; nothing was applied; publish a delta against '{base.name}'"
            )
        expected = (previous.sequence + 1, previous.digest) if previous else (1, "")
        if (self.sequence, manifest.previous) != expected:
            raise LineageError(
                f"expected delta {expected[0]} of '{base.name}' after "
                f"{expected[1][:12] or 'none'}, found delta {self.sequence} after "
                f"{manifest.previous[:12] or 'none'}; nothing was applied; deltas apply in their "
                "order"
            )
        return self


def delta_folder(data_path: Path, generation: str) -> Path:
    """Return where the deltas of a generation are; it need not exist."""
    return data_path / DELTAS / check_name(generation)


def list_deltas(data_path: Path, generation: str) -> list[Path]:
    """Return the folders of a generation's deltas in their order; cheap, nothing is opened.

    Raises:
        LineageError: one is missing between the first and the last.
    """
    folder = delta_folder(data_path, generation)
    try:
        numbers = [int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]
    except FileNotFoundError:
        return []
    numbers.sort()
    if numbers != [*range(1, len(numbers) + 1)]:
        missing = next(n for n in range(1, len(numbers) + 2) if n not in numbers)
        raise LineageError(
            f"expected the deltas of '{generation}' from 1 to {numbers[-1]}, found no delta "
            f"{missing}; nothing was applied; remove {folder} and let increments start again"
        )
    return [folder / _name(number) for number in numbers]


def read_deltas(
    data_path: Path, base: Generation, *, after: Delta | DeltaMark | None = None
) -> Iterator[Delta]:
    """Yield the deltas of `base` that follow `after`, each verified and checked to follow.

    Raises:
        CorruptArtifact, LineageError: as `list_deltas`, `Delta.open`, `Delta.check_follows`.
    """
    previous = after
    for path in list_deltas(data_path, base.name)[after.sequence if after else 0 :]:
        delta = Delta.open(path).check_follows(base, previous)
        yield delta
        previous = delta.mark


def newest_delta(data_path: Path, generation: str) -> DeltaManifest | None:
    """Return the manifest of a generation's last delta, None where there is none.

    Raises:
        CorruptArtifact, LineageError: as `list_deltas` and `Delta.open`.
    """
    paths = list_deltas(data_path, generation)
    return _read_manifest(paths[-1])[0] if paths else None


def has_delta(data_path: Path, generation: str, mark: DeltaMark) -> bool:
    """Return whether that very delta lies over a generation: deltas may have begun anew.

    Raises:
        CorruptArtifact: what lies in its place is damaged.
    """
    path = delta_folder(data_path, generation) / _name(mark.sequence)
    return path.is_dir() and _read_manifest(path)[1] == mark.digest


def write_delta(
    data_path: Path,
    base: Generation,
    rows: DeltaRows,
    span: DeltaSpan,
    *,
    now_ms: int,
    counts: dict[str, int] | None = None,
    at_step: Callable[[str], None] = failpoint,
) -> Delta:
    """Publish `rows` as the next delta of `base`; durable when it returns.

    Args:
        data_path: the project's data folder.
        base: the generation that the rows were trained over.
        rows: what changed; sorted by ID.
        span: which examples they learned from; begins where the delta before ended.
        now_ms: time of writing.
        counts: figures for people, beside those of users and items.
        at_step: called after every step that a crash can fall behind.

    Raises:
        LineageError: the span does not continue that of the delta before.
        CorruptArtifact: rows are not as they must be, or a number is not finite; nothing was
            written.
        NotReady: another process writes a delta of this generation.
    """
    rows.check("the delta to be published")
    folder = delta_folder(data_path, base.name)
    _make_folder(folder)
    with exclusive(folder / _LOCK, "writing a delta", _LOCK_TIMEOUT_S):
        for orphan in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(orphan)
        paths = list_deltas(data_path, base.name)
        previous = _read_manifest(paths[-1]) if paths else None
        _check_continues(previous[0] if previous else None, base, span)
        manifest = DeltaManifest(
            base=base.name,
            base_manifest=base.digest,
            sequence=len(paths) + 1,
            previous=previous[1] if previous else "",
            span=span,
            created_at_ms=now_ms,
            counts={"users": len(rows.user_ids), "items": len(rows.item_ids), **(counts or {})},
            files={},
        )
        return _write(folder, manifest, rows, at_step)


def _check_continues(previous: DeltaManifest | None, base: Generation, span: DeltaSpan) -> None:
    if previous is None:
        return
    if previous.base_manifest != base.digest:
        raise LineageError(
            f"expected deltas over the generation '{base.name}' of digest {base.digest[:12]}, "
            f"found delta {previous.sequence} over {previous.base_manifest[:12]}; nothing was "
            "written; remove the folder of that generation's deltas"
        )
    if span.first_offset != previous.span.through_offset:
        raise LineageError(
            f"expected delta {previous.sequence + 1} of '{base.name}' to begin at offset "
            f"{previous.span.through_offset}, where the one before ended, found "
            f"{span.first_offset}; nothing was written; another process publishes for this base"
        )


def _write(
    folder: Path, manifest: DeltaManifest, rows: DeltaRows, at_step: Callable[[str], None]
) -> Delta:
    name = _name(manifest.sequence)
    staging = folder / f"{_STAGING}{name}"
    staging.mkdir()
    files = {}
    for member, array in zip(_FILES, rows, strict=True):
        files[member] = write_array(staging / member, array)
        at_step(f"delta.write {member}")
    manifest = msgspec.structs.replace(manifest, files=files)
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    digest = _digest(content)
    write_bytes(staging / MANIFEST, content)
    write_bytes(staging / MANIFEST_DIGEST, f"{digest}  {MANIFEST}\n".encode())
    fsync_folder(staging)
    at_step("delta.staged")
    os.rename(staging, folder / name)
    at_step("delta.rename")
    fsync_folder(folder)
    at_step("delta.folder")
    return Delta(folder / name, manifest, digest, rows)


_FILES: Final = (
    "user_ids.npy",
    "user_embeddings.npy",
    "item_ids.npy",
    "item_embeddings.npy",
    "item_vectors.npy",
)
"""In the order of `DeltaRows`."""


def _read_manifest(path: Path) -> tuple[DeltaManifest, str]:
    match = _NAME.fullmatch(path.name)
    if match is None or path.is_symlink() or not path.is_dir():
        raise corrupt_delta(path, "expected a plain folder such as d-000001, found something else")
    content = read_regular(path / MANIFEST, _MAX_MANIFEST_BYTES)
    digest = _digest(content)
    expected = f"{digest}  {MANIFEST}\n".encode()
    if read_regular(path / MANIFEST_DIGEST, len(expected)) != expected:
        raise corrupt_delta(
            path, f"{MANIFEST} was altered: {MANIFEST_DIGEST} holds another checksum"
        )
    manifest = read_versioned(content, DeltaManifest, FORMAT_VERSION, str(path / MANIFEST))
    if (manifest.base, manifest.sequence) != (path.parent.name, int(match[1])):
        raise corrupt_delta(path, f"is delta {manifest.sequence} of {manifest.base!r}")
    return manifest, digest


def _assemble(path: Path, arrays: dict[str, npt.NDArray[Any]], verify: bool) -> DeltaRows:
    if missing := [name for name in _FILES if name not in arrays]:
        raise corrupt_delta(path, f"{missing[0]} is missing")
    rows = DeltaRows(
        _ids(path, arrays["user_ids.npy"]),
        _floats(path, arrays["user_embeddings.npy"]),
        _ids(path, arrays["item_ids.npy"]),
        _floats(path, arrays["item_embeddings.npy"]),
        _floats(path, arrays["item_vectors.npy"]),
    )
    return rows.check(str(path)) if verify else rows


def _ids(path: Path, stored: npt.NDArray[Any]) -> IdArray:
    if (stored.dtype, stored.ndim) not in ((np.dtype(np.int64), 1), (np.dtype(np.uint8), 2)):
        raise corrupt_delta(path, f"expected IDs, found {stored.dtype} of shape {stored.shape}")
    return view_ids(stored)


def _floats(path: Path, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if stored.dtype != np.float32:
        raise corrupt_delta(path, f"expected float32, found {stored.dtype}")
    return stored


def _make_folder(folder: Path) -> None:
    for path in (folder.parent, folder):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            fsync_folder(path.parent)


def _name(sequence: int) -> str:
    return f"d-{sequence:06d}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()
