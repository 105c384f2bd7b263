"""What an import wrote, with a checksum of every file: `import.json` of a version's folder.

The version's name is a digest of everything that the manifest says of the data, checksums included,
so a day that was altered since, in a file or in the manifest, is found when it is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from twotower.data.schema import IMPORT_FORMAT_VERSION, DayEntry, ImportedSchema
from twotower.durable import digest_file
from twotower.errors import CorruptArtifact

__all__ = ["ImportManifest", "ImportedFile", "check_file", "import_digest", "read_manifest"]


class ImportedFile(msgspec.Struct, frozen=True):
    """Size and BLAKE2b-256 digest (64 hexadecimal digits) of one file."""

    bytes: int
    blake2b: str = ""
    """Empty in format 1, whose files can be checked by their size only."""


class ImportManifest(msgspec.Struct, frozen=True, kw_only=True):
    """import.json of a version folder; unknown keys of the same format version are ignored."""

    format_version: int
    digest: str
    """Name of the version: `import_digest` of the next three."""
    table_schema: ImportedSchema
    days: dict[str, DayEntry]
    files: dict[str, ImportedFile]
    """Every data file, by its path in the folder."""
    report: msgspec.Raw
    """The import's `ImportReport`."""


def import_digest(
    schema: ImportedSchema, days: dict[str, DayEntry], files: dict[str, ImportedFile]
) -> str:
    """Return the name of the version that holds exactly this, 32 hexadecimal digits."""
    content = (IMPORT_FORMAT_VERSION, schema, days, files)
    described = msgspec.json.encode(content, order="sorted")
    return hashlib.blake2b(described, digest_size=16).hexdigest()


def check_file(folder: Path, name: str, expected: ImportedFile) -> Path:
    """Return the path of a file after comparing its every byte with the manifest.

    Raises:
        CorruptArtifact: it is missing, a link, or not what was imported.
    """
    path = folder / name
    num_bytes, blake2b = digest_file(path)
    if (num_bytes, blake2b) != (expected.bytes, expected.blake2b or blake2b):
        raise CorruptArtifact(
            f"expected {expected.bytes} bytes with the checksum {expected.blake2b[:16]} in {path}, "
            f"found {num_bytes} with {blake2b[:16]}: it was altered since the import; nothing was "
            "read from it and the live generation is unchanged; import again"
        )
    return path


def read_manifest(imported: Path) -> ImportManifest | None:
    """Return the manifest of the live import in the folder `imported`, None where there is none.

    Raises:
        CorruptArtifact: the pointer or the manifest cannot be understood, or was altered.
    """
    try:
        name = (imported / "CURRENT").read_text(encoding="ascii").strip()
        if not name.isalnum():
            raise CorruptArtifact(f"{imported / 'CURRENT'} names no version; import again")
        path = imported / name / "import.json"
        manifest = _decode(path.read_bytes(), path)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"the import in {imported} is unreadable: {error}") from error
    if manifest.format_version > 1:
        _check_digest(manifest, name, path)
    return manifest


def _decode(content: bytes, path: Path) -> ImportManifest:
    decoded = msgspec.json.decode(content, type=dict[str, Any])
    version = decoded["format_version"]
    if version > IMPORT_FORMAT_VERSION:
        raise CorruptArtifact(
            f"{path} has format version {version}, this twotower reads up to "
            f"{IMPORT_FORMAT_VERSION}; upgrade twotower or import again"
        )
    if version == 1:
        decoded["files"] = {name: {"bytes": size} for name, size in decoded["files"].items()}
        return msgspec.json.decode(msgspec.json.encode(decoded), type=ImportManifest)
    return msgspec.json.decode(content, type=ImportManifest)


def _check_digest(manifest: ImportManifest, name: str, path: Path) -> None:
    found = import_digest(manifest.table_schema, manifest.days, manifest.files)
    if not name == manifest.digest == found:
        raise CorruptArtifact(
            f"expected {path} to describe the version {name}, found {found}: it was altered since "
            "the import, or belongs to another; nothing was read; import again"
        )
