"""What a delta says of itself: its manifest, its name, and what may follow it.

Free of torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from twotower.durable import read_regular
from twotower.publishing.delta_files import DeltaFile, StoredArray, corrupt_delta
from twotower.publishing.manifest import MANIFEST, MANIFEST_DIGEST, digest_bytes, read_versioned

__all__ = [
    "FORMAT_VERSION",
    "DeltaManifest",
    "DeltaMark",
    "DeltaSpan",
    "delta_name",
    "delta_number",
    "read_delta_manifest",
]

FORMAT_VERSION: Final = 2
_NAME: Final = re.compile(r"d-([0-9]{6,12})")
_MAX_MANIFEST_BYTES: Final = 1 << 20


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
    arrays: dict[str, StoredArray] = {}
    """Where in the one file each array is; empty in format 1, which had a file an array."""


class DeltaMark(NamedTuple):
    """Which delta was applied last, for whoever asks whether the next one follows."""

    sequence: int
    digest: str
    """BLAKE2b-256 of its `manifest.json`."""


def delta_name(sequence: int) -> str:
    """Return the name of a delta's folder."""
    return f"d-{sequence:06d}"


def delta_number(name: str) -> int | None:
    """Return the number of the delta in a folder of that name, None where it is none."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def read_delta_manifest(path: Path) -> tuple[DeltaManifest, DeltaMark]:
    """Return the manifest of the delta `path`, and its mark.

    Raises:
        CorruptArtifact: it is torn, altered, foreign, newer, or another delta's.
    """
    number = delta_number(path.name)
    if number is None or path.is_symlink() or not path.is_dir():
        raise corrupt_delta(path, "expected a plain folder such as d-000001, found something else")
    content = read_regular(path / MANIFEST, _MAX_MANIFEST_BYTES)
    digest = digest_bytes(content)
    expected = f"{digest}  {MANIFEST}\n".encode()
    if read_regular(path / MANIFEST_DIGEST, len(expected)) != expected:
        raise corrupt_delta(
            path, f"{MANIFEST} was altered: {MANIFEST_DIGEST} holds another checksum"
        )
    manifest = read_versioned(content, DeltaManifest, FORMAT_VERSION, str(path / MANIFEST))
    if (manifest.base, manifest.sequence) != (path.parent.name, number):
        raise corrupt_delta(path, f"is delta {manifest.sequence} of {manifest.base!r}")
    return manifest, DeltaMark(number, digest)
