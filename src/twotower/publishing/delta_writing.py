"""Publishing a delta: written aside, fsynced, and named by one rename. Free of torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from twotower.durable import exclusive, fsync_folder
from twotower.errors import LineageError
from twotower.failpoints import failpoint
from twotower.publishing.delta import Delta, delta_folder, list_deltas
from twotower.publishing.delta_files import ROWS_FILE, write_arrays, write_bytes
from twotower.publishing.delta_manifest import (
    DeltaManifest,
    DeltaSpan,
    delta_name,
    read_delta_manifest,
)
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import MANIFEST, MANIFEST_DIGEST, digest_bytes

__all__ = ["write_delta"]

_STAGING: Final = ".staging-"
_LOCK: Final = ".write.lock"
_LOCK_TIMEOUT_S: Final = 10.0


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
        previous = read_delta_manifest(paths[-1]) if paths else None
        _check_continues(previous[0] if previous else None, base, span)
        manifest = DeltaManifest(
            base=base.name,
            base_manifest=base.digest,
            sequence=len(paths) + 1,
            previous=previous[1].digest if previous else "",
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
    name = delta_name(manifest.sequence)
    staging = folder / f"{_STAGING}{name}"
    staging.mkdir()
    entry, arrays = write_arrays(staging / ROWS_FILE, rows._asdict())
    at_step("delta.write rows")
    manifest = msgspec.structs.replace(manifest, files={ROWS_FILE: entry}, arrays=arrays)
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    digest = digest_bytes(content)
    write_bytes(staging / MANIFEST, content)
    write_bytes(staging / MANIFEST_DIGEST, f"{digest}  {MANIFEST}\n".encode())
    fsync_folder(staging)
    at_step("delta.staged")
    os.rename(staging, folder / name)
    at_step("delta.rename")
    fsync_folder(folder)
    at_step("delta.folder")
    return Delta(folder / name, manifest, digest, rows)


def _make_folder(folder: Path) -> None:
    for path in (folder.parent, folder):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            fsync_folder(path.parent)
