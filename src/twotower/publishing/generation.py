"""One published generation: an immutable folder that is used only as a whole.

Opening checks the manifest; `verify` reads every byte and refuses a file that is missing, extra,
altered, foreign or a link. Index files are parsed by C++ that trusts them, so nothing below this
class may see a file before its checksum was right. Free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.durable import at_no_chunk, digest_file, member_files, read_ahead, read_regular
from twotower.errors import CorruptArtifact
from twotower.publishing.manifest import (
    MANIFEST,
    MANIFEST_DIGEST,
    FileEntry,
    Manifest,
    check_name,
    decode_manifest,
    digest_bytes,
)

__all__ = ["FolderFingerprint", "Generation", "open_array"]

_MAX_MANIFEST_BYTES: Final = 64 << 20
_TRAINING: Final = "checkpoint/"
"""Files from which the next night starts."""


class FolderFingerprint(NamedTuple):
    """Device, inode, size and times of every file of a generation.

    Whoever writes to a file, replaces it or adds one makes another fingerprint, but for writes
    within the few milliseconds in which a kernel gives all of them the same time.
    """

    digest: str
    changed_ns: int
    """Newest of the times, since 1970."""


class Generation:
    """A generation on disk whose manifest is sound; its files are checked by `verify`."""

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest
        """BLAKE2b-256 of `manifest.json`, and so of everything in the generation."""
        self.at_file: Callable[[], None] = at_no_chunk
        """Called before a file is handed out: whoever shares a core with others may rest there."""

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Generation:
        """Open the folder `path`, whose last part is the generation's name.

        Raises:
            CorruptArtifact: the manifest is damaged, foreign, newer, or another generation's;
                with `verify`, also whatever `Generation.verify` refuses.
        """
        check_name(path.name)
        if path.is_symlink() or not path.is_dir():
            raise CorruptArtifact(f"expected a plain folder at {path}, found something else")
        content = read_regular(path / MANIFEST, _MAX_MANIFEST_BYTES)
        digest = digest_bytes(content)
        _check_digest(path, digest)
        manifest = decode_manifest(content, str(path / MANIFEST))
        if manifest.name != path.name:
            raise _corrupt(path, MANIFEST, f"is the manifest of {manifest.name!r}")
        generation = cls(path, manifest, digest)
        if verify:
            generation.verify()
        return generation

    @property
    def name(self) -> str:
        """The plain name, `g-000001`."""
        return self.manifest.name

    def fingerprint(self) -> FolderFingerprint:
        """Return what the file system says of every file; no file is read.

        Raises:
            CorruptArtifact: something in the folder is neither file nor folder.
        """
        digest, changed_ns = hashlib.blake2b(digest_size=32), 0
        for member in member_files(self.path)[0]:
            found = (self.path / member).lstat()
            times_ns = (found.st_mtime_ns, found.st_ctime_ns)
            mark = (member, found.st_dev, found.st_ino, found.st_size, *times_ns)
            digest.update(f"{mark}\n".encode())
            changed_ns = max(changed_ns, *times_ns)
        return FolderFingerprint(digest.hexdigest(), changed_ns)

    def verify(self, at_chunk: Callable[[], None] = at_no_chunk) -> None:
        """Read every file and compare it with the manifest.

        Args:
            at_chunk: Called after every quarter of a megabyte or less.

        Raises:
            CorruptArtifact: a file is missing, extra, truncated, altered, foreign, or a link.
        """
        found = set(member_files(self.path)[0]) - {MANIFEST, MANIFEST_DIGEST}
        expected = set(self.manifest.files)
        if missing := sorted(expected - found):
            raise _corrupt(self.path, missing[0], "is missing")
        if extra := sorted(found - expected):
            raise _corrupt(self.path, extra[0], "is not named by the manifest")
        for member, entry in self.manifest.files.items():
            self._verify_file(member, entry, at_chunk)

    def _verify_file(self, member: str, entry: FileEntry, at_chunk: Callable[[], None]) -> None:
        num_bytes = (self.path / member).lstat().st_size
        if num_bytes != entry.bytes:
            raise _corrupt(self.path, member, f"has {num_bytes} bytes, expected {entry.bytes}")
        if digest_file(self.path / member, at_chunk) != (entry.bytes, entry.blake2b):
            raise _corrupt(self.path, member, "was altered: its checksum is wrong")

    def read_ahead(self) -> None:
        """Ask the kernel to have every file in memory soon that answers need."""
        for member in self.manifest.files:
            if not member.startswith(_TRAINING):
                read_ahead(self.path / member)

    def file(self, member: str) -> Path:
        """Return the path of a file of this generation, or of a folder that holds such files.

        Raises:
            CorruptArtifact: the manifest names no such file.
        """
        files = self.manifest.files
        if member not in files and not any(name.startswith(f"{member}/") for name in files):
            raise _corrupt(self.path, member, "is not named by the manifest")
        self.at_file()
        return self.path / member

    def read(self, member: str) -> bytes:
        """Return the bytes of one small file."""
        return read_regular(self.file(member), self.manifest.files[member].bytes)

    def array(self, member: str) -> npt.NDArray[Any]:
        """Return the array in the `.npy` file `member`, mapped, so that processes share it."""
        return open_array(self.file(member))


def open_array(path: Path) -> npt.NDArray[Any]:
    """Return the array in the `.npy` file `path`, mapped read-only; an empty one is loaded.

    Raises:
        CorruptArtifact: it holds no plain array.
    """
    try:
        with open(path, "rb") as stream:
            np.lib.format.read_magic(stream)
            shape = np.lib.format.read_array_header_1_0(stream)[0]
            if 0 in shape:
                stream.seek(0)
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, EOFError) as error:
        raise CorruptArtifact(f"expected an array at {path}: {error}; it was not loaded") from error


def _check_digest(path: Path, digest: str) -> None:
    expected = f"{digest}  {MANIFEST}\n".encode()
    if read_regular(path / MANIFEST_DIGEST, len(expected)) != expected:
        raise _corrupt(path, MANIFEST, f"was altered: {MANIFEST_DIGEST} holds another checksum")


def _corrupt(path: Path, member: str, finding: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"generation '{path.name}' is damaged: {member} {finding}; nothing of it was loaded; "
        "activate another generation, roll back, or publish again"
    )
