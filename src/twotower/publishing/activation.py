"""What is live: the `CURRENT` file and its audit trail, `activations.jsonl`.

`CURRENT` alone decides. It holds the whole record of its activation, so an audit line that a crash
swallowed is written by the next activation, and it ends in a checksum of itself, so that a flipped
bit never makes another generation live. Sequence numbers only grow, also through roll-backs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from twotower.durable import (
    Step,
    at_nothing,
    fsync_folder,
    read_regular,
    replace_file,
)
from twotower.errors import CorruptArtifact
from twotower.publishing.checked import decode_checked, encode_checked
from twotower.publishing.manifest import check_name

__all__ = [
    "AUDIT",
    "CURRENT",
    "Action",
    "Activation",
    "append_audit",
    "read_audit",
    "read_current",
    "write_current",
]

CURRENT: Final = "CURRENT"
AUDIT: Final = "activations.jsonl"
FORMAT_VERSION: Final = 1
Action = Literal["activate", "roll_back"]

_MAX_BYTES: Final = 1 << 16
_MAX_AUDIT_BYTES: Final = 1 << 28


class Activation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One change of what is live."""

    format_version: int = FORMAT_VERSION
    generation: str
    sequence: int
    """1, 2, 3 …; a roll-back takes the next number too."""
    activated_at: str
    """UTC, ISO 8601. For people: order comes from the sequence."""
    action: Action = "activate"
    previous: str | None = None
    """The generation that was live before, where `roll_back` goes."""
    manifest: str
    """Digest of the generation's manifest.json, and so of all its bytes."""
    forced: list[str] = []
    """Gates that the generation had not passed and that `--force` overruled."""
    reason: str = ""
    by: str = ""
    """Who did it: the user number of the process, and over HTTP the request and its key."""
    check: str = ""
    """BLAKE2b-256 of this record with an empty `check`."""


def _decode(content: bytes, where: str) -> Activation:
    remedy = "no generation was loaded; name one: twotower generations activate NAME"
    activation = decode_checked(content, Activation, FORMAT_VERSION, where, remedy=remedy)
    check_name(activation.generation)
    return activation


def read_current(root: Path) -> Activation | None:
    """Return the live activation of the store folder `root`, None before the first one.

    Raises:
        CorruptArtifact: `CURRENT` is damaged, a link, or of a newer format.
    """
    path = root / CURRENT
    if not os.path.lexists(path):
        return None
    return _decode(read_regular(path, _MAX_BYTES), str(path))


def write_current(root: Path, activation: Activation, at_step: Step = at_nothing) -> Activation:
    """Make `activation` what is live, atomically and durably; return it with its checksum."""
    content = encode_checked(activation)
    replace_file(root / CURRENT, content, at_step)
    return msgspec.json.decode(content, type=Activation)


def read_audit(root: Path) -> list[Activation]:
    """Return the recorded activations, oldest first, without lines that are damaged."""
    path = root / AUDIT
    if not os.path.lexists(path):
        return []
    lines = read_regular(path, _MAX_AUDIT_BYTES).splitlines(keepends=True)
    return [record for line in lines if (record := _decode_line(line)) is not None]


def _decode_line(line: bytes) -> Activation | None:
    try:
        return _decode(line, AUDIT)
    except CorruptArtifact:
        return None


def append_audit(root: Path, activation: Activation) -> None:
    """Add `activation` to the audit trail, durably, unless it is its last line already.

    A last line without an end, which a crash left, is ended first, so that it spoils no other.
    """
    line = encode_checked(activation)
    path = root / AUDIT
    written = read_regular(path, _MAX_AUDIT_BYTES) if os.path.lexists(path) else b""
    if written.endswith(line):
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o644), "ab") as stream:
        stream.write(line if not written or written.endswith(b"\n") else b"\n" + line)
        stream.flush()
        os.fsync(stream.fileno())
    fsync_folder(root)
