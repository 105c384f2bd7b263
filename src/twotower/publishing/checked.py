"""Small records in files that end in a checksum of themselves: a flipped bit changes nothing else.

For what one process writes whole and others look at often: what is live, keys, the day's items.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from twotower.errors import CorruptArtifact
from twotower.publishing.manifest import digest_bytes, read_versioned

__all__ = ["Fingerprint", "decode_checked", "encode_checked", "fingerprint_of"]

Record = TypeVar("Record", bound=Any)
"""A struct with the fields `format_version` and `check`."""


class Fingerprint(NamedTuple):
    """What tells one content of a file from another without reading it."""

    inode: int
    bytes: int
    changed_ns: int


def fingerprint_of(path: Path) -> Fingerprint | None:
    """Return what changes with every change of a file, None where there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Fingerprint(found.st_ino, found.st_size, found.st_mtime_ns)


def encode_checked(record: Record) -> bytes:
    """Return a record as a line of JSON, its `check` that of all the rest."""
    bare = msgspec.structs.replace(record, check="")
    check = digest_bytes(msgspec.json.encode(bare))
    return msgspec.json.encode(msgspec.structs.replace(bare, check=check)) + b"\n"


def decode_checked(
    content: bytes, kind: type[Record], newest: int, where: str, *, remedy: str
) -> Record:
    """Return the record that `encode_checked` made this content from.

    Args:
        content: of the file.
        kind: of the record.
        newest: the highest format version that is known.
        where: names the file.
        remedy: what still holds, and what to do.

    Raises:
        CorruptArtifact: it is torn, altered, foreign or newer.
    """
    record = read_versioned(content, kind, newest, where)
    if encode_checked(record) != content:
        raise CorruptArtifact(f"{where} was altered: its checksum is wrong; {remedy}")
    return record
