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

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twotower.data.ids import view_ids
from twotower.data.schema import IdArray
from twotower.durable import member_files
from twotower.errors import LineageError
from twotower.publishing.delta_files import (
    ROWS_FILE,
    DeltaFile,
    corrupt_delta,
    map_arrays,
    read_array,
)
from twotower.publishing.delta_manifest import (
    DeltaManifest,
    DeltaMark,
    DeltaSpan,
    delta_name,
    delta_number,
    read_delta_manifest,
)
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import MANIFEST, MANIFEST_DIGEST, check_name

__all__ = [
    "DELTAS",
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
]

DELTAS: Final = "deltas"
Array = npt.NDArray[Any]


class Delta:
    """A delta on disk with its rows, which are mapped from there; it does not change."""

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
        manifest, mark = read_delta_manifest(path)
        found = set(member_files(path)[0]) - {MANIFEST, MANIFEST_DIGEST}
        if found != set(manifest.files):
            raise corrupt_delta(
                path, f"expected the files {sorted(manifest.files)}, found {sorted(found)}"
            )
        rows = _assemble(path, _arrays(path, manifest, verify))
        return cls(path, manifest, mark.digest, rows.check(str(path)) if verify else rows)

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
        found = [delta_number(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
    numbers = sorted(number for number in found if number is not None)
    if numbers != [*range(1, len(numbers) + 1)]:
        missing = next(n for n in range(1, len(numbers) + 2) if n not in numbers)
        raise LineageError(
            f"expected the deltas of '{generation}' from 1 to {numbers[-1]}, found no delta "
            f"{missing}; nothing was applied; remove {folder} and let increments start again"
        )
    return [folder / delta_name(number) for number in numbers]


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
    return read_delta_manifest(paths[-1])[0] if paths else None


def has_delta(data_path: Path, generation: str, mark: DeltaMark) -> bool:
    """Return whether that very delta lies over a generation: deltas may have begun anew.

    Raises:
        CorruptArtifact: what lies in its place is damaged.
    """
    path = delta_folder(data_path, generation) / delta_name(mark.sequence)
    return path.is_dir() and read_delta_manifest(path)[1] == mark


def _arrays(path: Path, manifest: DeltaManifest, verify: bool) -> dict[str, Array]:
    """Return the arrays by name; format 1 had a file for each."""
    if manifest.format_version == 1:
        files = manifest.files.items()
        return {
            name.removesuffix(".npy"): read_array(path, name, entry, verify)
            for name, entry in files
        }
    if [*manifest.files] != [ROWS_FILE]:
        raise corrupt_delta(path, f"expected {ROWS_FILE} alone, found {sorted(manifest.files)}")
    return map_arrays(path, ROWS_FILE, manifest.files[ROWS_FILE], manifest.arrays, verify)


def _assemble(path: Path, arrays: dict[str, Array]) -> DeltaRows:
    if set(arrays) != set(DeltaRows._fields):
        raise corrupt_delta(
            path, f"expected the arrays {sorted(DeltaRows._fields)}, found {sorted(arrays)}"
        )
    return DeltaRows(
        _ids(path, arrays["user_ids"]),
        _floats(path, arrays["user_embeddings"]),
        _ids(path, arrays["item_ids"]),
        _floats(path, arrays["item_embeddings"]),
        _floats(path, arrays["item_vectors"]),
    )


def _ids(path: Path, stored: Array) -> IdArray:
    if (stored.dtype, stored.ndim) not in ((np.dtype(np.int64), 1), (np.dtype(np.uint8), 2)):
        raise corrupt_delta(path, f"expected IDs, found {stored.dtype} of shape {stored.shape}")
    return view_ids(stored)


def _floats(path: Path, stored: Array) -> npt.NDArray[np.float32]:
    if stored.dtype != np.float32:
        raise corrupt_delta(path, f"expected float32, found {stored.dtype}")
    return stored
