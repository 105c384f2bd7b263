"""The vectors of the day's items by one generation's item tower: made once, shared by all workers.

    overlays/g-000007/
      o-000003/               the items of the register's change 3; immutable
      .staging-o-000004/      a write that was killed: the next one removes it
      .write.lock

Legend: `m` items, `D` vector dimension (the popularity coordinate included).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.ids import view_ids
from twotower.data.schema import IdArray
from twotower.durable import exclusive, fsync_folder, member_files, read_regular
from twotower.errors import CorruptArtifact
from twotower.failpoints import failpoint
from twotower.publishing.delta_files import DeltaFile, read_array, write_array, write_bytes
from twotower.publishing.generation import Generation
from twotower.publishing.item_register import OVERLAYS
from twotower.publishing.manifest import (
    MANIFEST,
    MANIFEST_DIGEST,
    check_name,
    digest_bytes,
    read_versioned,
)

__all__ = ["ItemVectors", "overlay_folder", "read_item_vectors", "write_item_vectors"]

FORMAT_VERSION: Final = 1
_STAGING: Final = ".staging-"
_LOCK: Final = ".write.lock"
_LOCK_TIMEOUT_S: Final = 30.0
_MAX_MANIFEST_BYTES: Final = 1 << 20
_KEPT: Final = 2
"""The newest, and the one before it, which a worker may be reading."""
_IDS, _VECTORS = "item_ids.npy", "item_vectors.npy"


class ItemVectors(NamedTuple):
    """The day's items that a generation does not return by itself."""

    item_ids: IdArray
    """`[m]`, ascending."""
    vectors: npt.NDArray[np.float32]
    """`[m, D]`"""


class _OverlayManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an overlay is: the file `manifest.json`."""

    format_version: int = FORMAT_VERSION
    base: str
    """Name of the generation whose tower made the vectors."""
    base_manifest: str
    """BLAKE2b-256 of that generation's `manifest.json`."""
    number: int
    """The register's `added_number`."""
    items: int
    files: dict[str, DeltaFile]


def overlay_folder(data_path: Path, generation: str) -> Path:
    """Return where the overlays of a generation are; it need not exist."""
    return data_path / OVERLAYS / check_name(generation)


def read_item_vectors(data_path: Path, base: Generation, number: int) -> ItemVectors | None:
    """Return the items of the register's change `number`, None where nobody encoded them yet.

    Raises:
        CorruptArtifact: they are torn, altered, foreign, or of another generation.
    """
    path = overlay_folder(data_path, base.name) / _name(number)
    if not os.path.lexists(path):
        return None
    content = read_regular(path / MANIFEST, _MAX_MANIFEST_BYTES)
    expected = f"{digest_bytes(content)}  {MANIFEST}\n".encode()
    if read_regular(path / MANIFEST_DIGEST, len(expected)) != expected:
        raise _corrupt(path, f"{MANIFEST} was altered: {MANIFEST_DIGEST} holds another checksum")
    manifest = read_versioned(content, _OverlayManifest, FORMAT_VERSION, str(path / MANIFEST))
    if (manifest.base, manifest.base_manifest, manifest.number) != (base.name, base.digest, number):
        raise _corrupt(path, f"is change {manifest.number} of '{manifest.base}'")
    found = set(member_files(path)[0]) - {MANIFEST, MANIFEST_DIGEST}
    if found != {_IDS, _VECTORS} or set(manifest.files) != found:
        raise _corrupt(path, f"expected the files {[_IDS, _VECTORS]}, found {sorted(found)}")
    ids, vectors = (read_array(path, name, manifest.files[name], True) for name in (_IDS, _VECTORS))
    if len(ids) != len(vectors):
        raise _corrupt(path, f"holds {len(ids)} items and {len(vectors)} vectors")
    return ItemVectors(view_ids(ids), vectors)


def write_item_vectors(data_path: Path, base: Generation, number: int, items: ItemVectors) -> None:
    """Publish the vectors for all workers; durable when it returns. Older ones are removed.

    Whoever comes second finds them written and writes nothing.

    Raises:
        NotReady: another process does not end its write in time.
    """
    folder = overlay_folder(data_path, base.name)
    folder.mkdir(parents=True, exist_ok=True)
    fsync_folder(folder.parent)
    with exclusive(folder / _LOCK, "encoding the items of the day", _LOCK_TIMEOUT_S):
        for orphan in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(orphan)
        if not os.path.lexists(folder / _name(number)):
            _write(folder, base, number, items)
        for path in sorted(folder.glob("o-*"))[:-_KEPT]:
            shutil.rmtree(path)


def _write(folder: Path, base: Generation, number: int, items: ItemVectors) -> None:
    staging = folder / f"{_STAGING}{_name(number)}"
    staging.mkdir()
    arrays = zip((_IDS, _VECTORS), items, strict=True)
    files = {name: write_array(staging / name, array) for name, array in arrays}
    failpoint("items.vectors written")
    manifest = _OverlayManifest(
        base=base.name,
        base_manifest=base.digest,
        number=number,
        items=len(items.item_ids),
        files=files,
    )
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    write_bytes(staging / MANIFEST, content)
    write_bytes(staging / MANIFEST_DIGEST, f"{digest_bytes(content)}  {MANIFEST}\n".encode())
    fsync_folder(staging)
    failpoint("items.vectors staged")
    os.rename(staging, folder / _name(number))
    fsync_folder(folder)
    failpoint("items.vectors renamed")


def _name(number: int) -> str:
    return f"o-{number:06d}"


def _corrupt(path: Path, finding: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"overlay '{path.name}' of '{path.parent.name}' is damaged: {finding}; nothing of it was "
        "applied and what is served is unchanged; remove the folder: it is made anew"
    )
