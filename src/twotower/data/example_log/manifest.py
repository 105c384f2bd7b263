"""`manifest.json` of the example log: how far the join has come and which files that is.

Renaming it into place is the one step in which examples, state and offsets become what they are
after a batch. A file that it does not name does not exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from twotower.data.events import IdKinds
from twotower.data.ids import IdKind
from twotower.durable import Step, at_nothing, read_regular, replace_file
from twotower.errors import CorruptArtifact

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "ExampleManifest",
    "ShardSpan",
    "StateFile",
    "examples_path",
    "read_manifest",
    "write_manifest",
]

FORMAT_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
_MAX_BYTES: Final = 1 << 26


class ShardSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A shard and the offsets `[start, end)` of its examples."""

    name: str
    start: int
    end: int
    bytes: int
    xxh3: str


class StateFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file that holds what the join remembers."""

    name: str
    bytes: int
    xxh3: str


class ExampleManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one commit of the join makes true."""

    format_version: int = FORMAT_VERSION
    user_id_kind: IdKind
    item_id_kind: IdKind
    event_offset: int = 0
    """The event log was joined up to here."""
    watermark_ms: int | None = None
    """No earlier event is expected; None before the first event. What was emitted are the examples
    whose event time it has passed by `join.window_s`."""
    newest_event_time_ms: int | None = None
    """Of the events that were accepted."""
    begin: int = 0
    """Oldest offset that can be read."""
    end: int = 0
    """Offset after the last example: how many were ever emitted."""
    first_day: str | None = None
    """Local day in which the emitted event times began; days before it did not come this way."""
    cuts: dict[str, int] = {}
    """Local day -> offset of the first example that was emitted after it had ended."""
    event_cuts: dict[str, int] = {}
    """Local day -> offset of the first event that was joined after it had ended; whatever its time,
    it is in no example before the cut. Absent of days that format 1 cut."""
    counts: dict[str, int] = {}
    """Events by what became of them; see docs/label-join.md."""
    dropped: list[tuple[int, str]] = []
    """Event offset and fate of the newest events that became no example, by offset."""
    shards: list[ShardSpan] = []
    state: StateFile | None = None

    @property
    def id_kinds(self) -> IdKinds:
        """What the IDs are."""
        return IdKinds(self.user_id_kind, self.item_id_kind)


class _Versioned(msgspec.Struct):
    format_version: int


def examples_path(data_path: Path) -> Path:
    """Return the folder of the example log of a project."""
    return data_path / "examples"


def read_manifest(folder: Path) -> ExampleManifest | None:
    """Return the manifest of the example log in `folder`, None where nothing was joined.

    Raises:
        CorruptArtifact: it is of a newer format, or cannot be understood.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    content = read_regular(path, _MAX_BYTES)
    try:
        version = msgspec.json.decode(content, type=_Versioned).format_version
        if version > FORMAT_VERSION:
            raise CorruptArtifact(
                f"{path} has format version {version}, this twotower reads up to "
                f"{FORMAT_VERSION}; nothing was read; upgrade twotower"
            )
        manifest = msgspec.json.decode(content, type=ExampleManifest)
    except msgspec.MsgspecError as error:
        raise CorruptArtifact(
            f"{path} cannot be understood: {error}; nothing was read; restore it from a backup, "
            f"or remove {folder} and join the event log from its beginning"
        ) from error
    _check_names(path, manifest)
    return manifest


def _check_names(path: Path, manifest: ExampleManifest) -> None:
    """Refuse a name that leaves the folder, and shards that leave a hole."""
    names = [shard.name for shard in manifest.shards]
    if manifest.state is not None:
        names.append(manifest.state.name)
    if wrong := [name for name in names if "/" in name or name.startswith(".") or not name]:
        raise CorruptArtifact(f"{path} names the file {wrong[0]!r}; nothing was read")
    ends = [manifest.begin, *(shard.end for shard in manifest.shards)]
    starts = [*(shard.start for shard in manifest.shards), manifest.end]
    if ends != starts:
        raise CorruptArtifact(
            f"expected shards from offset {manifest.begin} to {manifest.end} without a hole in "
            f"{path}, found them to end at {ends[1:]} and to start at {starts[:-1]}; nothing was "
            "read"
        )


def write_manifest(folder: Path, manifest: ExampleManifest, at_step: Step = at_nothing) -> None:
    """Make the manifest what is true: a reader sees the one before or this one, whole."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    replace_file(folder / MANIFEST, content + b"\n", at_step)
