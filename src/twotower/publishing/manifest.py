"""The manifest of a generation: what it is, where it came from, and a checksum of every file.

`manifest.json` names every other file of the folder with its size and its BLAKE2b-256 digest;
`manifest.b2sum` holds the digest of `manifest.json` itself, in the form that `b2sum --check`
reads. A field that is added, renamed or removed raises `FORMAT_VERSION`: an older manifest is
read, a newer one is refused with one line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec

from twotower.errors import ConfigError, CorruptArtifact

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "MANIFEST_DIGEST",
    "FileEntry",
    "GateResult",
    "HistoryPooling",
    "IndexEntry",
    "Manifest",
    "Scoring",
    "Trained",
    "Window",
    "check_member",
    "check_name",
    "decode_manifest",
    "digest_bytes",
    "encode_manifest",
    "is_name",
    "read_versioned",
    "refusal",
]

FORMAT_VERSION: Final = 3
MANIFEST: Final = "manifest.json"
MANIFEST_DIGEST: Final = "manifest.b2sum"

HistoryPooling = Literal["mean", "sqrt"]
T = TypeVar("T")

_NAME: Final = re.compile(r"g-[0-9]{6,12}")
_MEMBER_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_MAX_MEMBER_DEPTH: Final = 6


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and BLAKE2b-256 digest (64 hexadecimal digits) of one file."""

    bytes: int
    blake2b: str


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The days that were trained; `cut_ms` is the end of the last one, UTC."""

    from_day: str | None = None
    through_day: str | None = None
    cut_ms: int = 0
    skipped: tuple[str, ...] = ()
    """Days between that were left out by name."""
    example_offset: int = 0
    """First example of the example log that was not trained; increments go on there. 0 where
    nothing was streamed by then."""


class Trained(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was trained: `digest` is the order-free digest of the trained event IDs.

    `rows` is `window_rows - withheld_rows + carried_rows`: the window's positives, without those
    that are held out for the next night, with those that the parent had held out.
    """

    rows: int = 0
    distinct_event_ids: int = 0
    digest: str = ""
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    examples_per_s: float = 0.0
    loss: float | None = None
    window_rows: int = 0
    withheld_rows: int = 0
    carried_rows: int = 0


class Scoring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a score comes about: the cosine, plus a popularity coordinate with a weight above 0.

    The item vector then ends in `popularity_weight * temperature * log_popularity` and the user
    vector in 1, so their inner product is the logit of that mixture times the temperature.
    """

    popularity_weight: float = 0.0
    temperature: float = 0.1

    @property
    def has_popularity(self) -> bool:
        """Whether vectors have the coordinate."""
        return self.popularity_weight > 0


class IndexEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The engine of the index, its size, and its recall against exact search."""

    engine: str
    num_items: int
    ann_recall_at_100: float | None = None
    num_probe_users: int = 0


class GateResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a gate measured, `needs` in words such as 'at least 0.9500', and its verdict.

    `measured` is None where there was too little to judge; `detail` says what was missing.
    """

    gate: str
    measured: float | None
    bar: float
    needs: str
    passed: bool
    detail: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be said about a generation without opening its arrays."""

    format_version: int = FORMAT_VERSION
    name: str
    kind: Literal["base", "full"]
    parent: str | None
    created_at: str
    """UTC, ISO 8601. For people: order comes from names and sequence numbers."""
    window: Window
    trained: Trained
    seed: int = 0
    settings_digest: str = ""
    vector_dim: int
    """Of the vectors in the index, the popularity coordinate included."""
    scoring: Scoring = Scoring()
    history_length: int = 0
    """Most recent clicks of a user that the user tower pools."""
    history_pooling: HistoryPooling = "mean"
    """How: their rows' sum divided by their number, or by its square root."""
    counts: dict[str, int]
    """users, items, corpus, user_rows, item_rows; IDs that earned or lost a row in this run:
    admitted_users, admitted_items, evicted_users, evicted_items."""
    index: IndexEntry
    metrics: dict[str, float] = {}
    gates: list[GateResult] = []
    files: dict[str, FileEntry] = {}

    @property
    def refused(self) -> list[GateResult]:
        """The gates that this generation did not pass."""
        return [result for result in self.gates if not result.passed]


def refusal(refused: Sequence[GateResult]) -> str:
    """Return what the gates found and wanted, in one line."""
    return "; ".join(
        f"gate '{result.gate}' measured {_figure(result.measured)}, needs {result.needs}"
        for result in refused
    )


def _figure(number: float | None) -> str:
    if number is None:
        return "nothing"
    return f"{number:.4f}" if number == 0 or abs(number) >= 0.001 else f"{number:.2g}"


def digest_bytes(content: bytes) -> str:
    """Return the BLAKE2b-256 digest of `content` as 64 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def is_name(name: str) -> bool:
    """Return whether `name` is the plain name of a generation: `g-` and 6 to 12 ASCII digits."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return `name` if it is the plain name of a generation.

    Raises:
        ConfigError: it is anything else; a name becomes a path, so nothing else may pass.
    """
    if not is_name(name):
        raise ConfigError(
            f"expected the name of a generation such as 'g-000001', found {name[:80]!r}; "
            "nothing was read or written; list them with: twotower generations list"
        )
    return name


def check_member(member: str) -> str:
    """Return `member` if it is a plain relative path inside a generation.

    Raises:
        CorruptArtifact: it is absolute, climbs, is hidden, or holds unusual characters.
    """
    parts = member.split("/")
    plain = len(parts) <= _MAX_MEMBER_DEPTH and all(map(_MEMBER_PART.fullmatch, parts))
    if not plain or member in (MANIFEST, MANIFEST_DIGEST):
        raise CorruptArtifact(
            f"expected the manifest to name plain files inside its folder, found {member[:80]!r}; "
            "the generation was not loaded"
        )
    return member


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`, indented for people, the files in sorted order."""
    ordered = msgspec.structs.replace(manifest, files=dict(sorted(manifest.files.items())))
    return msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n"


def decode_manifest(content: bytes, where: str) -> Manifest:
    """Return the manifest in `content`; `where` names the file in messages.

    Raises:
        CorruptArtifact: it is torn or foreign, or of a newer format.
    """
    manifest = read_versioned(content, Manifest, FORMAT_VERSION, where)
    for member in manifest.files:
        check_member(member)
    return manifest


class _Versioned(msgspec.Struct):
    format_version: int


def read_versioned(content: bytes, kind: type[T], newest: int, where: str) -> T:
    """Decode JSON `content` into `kind`, looking at its `format_version` before all else.

    Raises:
        CorruptArtifact: it is not such a file, or its version is above `newest`.
    """
    try:
        version = msgspec.json.decode(content, type=_Versioned).format_version
        if not 1 <= version <= newest:
            raise CorruptArtifact(
                f"{where} has format version {version}, this twotower reads 1 to {newest}; "
                "it was not loaded; upgrade twotower to read it"
            )
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptArtifact(
            f"{where} is damaged or foreign: {error}; it was not loaded; "
            "activate another generation, or publish again"
        ) from error
