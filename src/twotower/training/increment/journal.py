"""The folder of an incremental update over one base generation: what it was, after a crash too.

    increments/g-000007/
      000012.whole     everything up to the twelfth commit
      000013.part …    what each later commit changed

One commit is one file, written aside, fsynced and renamed: offset and rows become true together.
A whole file replaces all before it once the parts have grown as large, so that neither a commit
nor a start costs more than the rows that changed. A file begins with a BLAKE2b-256 of the rest,
keyed by the run: another run's file, a torn one and one with a flipped bit are found before any of
it is understood, and then everything is learned anew from the generation's cut.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Final

from twotower.durable import fsync_folder, write_in_pieces
from twotower.errors import CorruptArtifact
from twotower.failpoints import failpoint
from twotower.training.increment.changes import (
    Changes,
    decode_changes,
    encode_changes,
    merge_changes,
)

__all__ = ["Journal"]

_LOGGER: Final = logging.getLogger("twotower")
_NAME: Final = re.compile(r"([0-9]{6,12})\.(part|whole)")
_CHECK_BYTES: Final = 32


class Journal:
    """Commits changes and finds them again. One process at a time; the caller holds the lock."""

    def __init__(self, folder: Path, key: str, least_whole_bytes: int) -> None:
        """Name the folder; nothing is read or made yet.

        Args:
            folder: of one base generation.
            key: of the run, 32 hexadecimal digits: what must be equal for changes to fit.
            least_whole_bytes: parts smaller than this together are never merged.
        """
        self._folder = folder
        self._key = bytes.fromhex(key)
        self._least_whole_bytes = least_whole_bytes
        self._number = 0
        self._part_bytes = 0
        self._whole_bytes = 0

    def load(self) -> Changes | None:
        """Return everything since the base, None to start anew; what is of no use is removed."""
        try:
            changes = self._read()
        except CorruptArtifact as error:
            _LOGGER.warning(
                "ignored path=%r reason=%r; the increments of this generation are learned anew",
                str(self._folder),
                str(error),
            )
            changes = None
        if changes is None:
            self.clear()
        return changes

    def commit(self, changes: Changes) -> None:
        """Store changes that follow what is there; durable when it returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._number == 0:
            fsync_folder(self._folder.parent)
        self._number += 1
        self._part_bytes += self._write(f"{self._number:06d}.part", changes)
        if self._part_bytes > max(self._whole_bytes, self._least_whole_bytes):
            self._merge()

    def clear(self) -> None:
        """Remove every file."""
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if _NAME.fullmatch(path.name.removesuffix(".new")):
                path.unlink()
        self._number = self._part_bytes = self._whole_bytes = 0

    def _files(self) -> list[tuple[int, str, Path]]:
        """Return number, kind and path of the files that count, in order."""
        paths = [*self._folder.iterdir()] if self._folder.is_dir() else []
        named = [(path, match) for path in paths if (match := _NAME.fullmatch(path.name))]
        found = sorted((int(match[1]), match[2], path) for path, match in named)
        wholes = [place for place, (_, kind, _) in enumerate(found) if kind == "whole"]
        return found[wholes[-1] :] if wholes else found

    def _read(self) -> Changes | None:
        files = self._files()
        if not files:
            return None
        first = files[0][0] if files[0][1] == "whole" else 1
        if [number for number, _, _ in files] != [*range(first, files[-1][0] + 1)]:
            raise CorruptArtifact(f"expected every commit from {first} on in {self._folder}")
        parts = [self._open(path) for _, _, path in files]
        sizes = [path.stat().st_size for _, _, path in files]
        self._number = files[-1][0]
        self._whole_bytes = sizes[0] if files[0][1] == "whole" else 0
        self._part_bytes = sum(sizes) - self._whole_bytes
        return merge_changes(parts)

    def _merge(self) -> None:
        """Write one file in place of all."""
        changes = self._read()
        assert changes is not None, "a commit was written just now"
        self._whole_bytes = self._write(f"{self._number:06d}.whole", changes)
        self._part_bytes = 0
        failpoint("increment.before_removing")
        kept = f"{self._number:06d}.whole"
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name) and path.name != kept:
                path.unlink()
                failpoint("increment.removed")

    def _open(self, path: Path) -> Changes:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        content = path.read_bytes()
        stored = memoryview(content)[_CHECK_BYTES:]
        if content[:_CHECK_BYTES] != self._check(stored):
            raise CorruptArtifact(f"{path.name} is damaged, or of another run")
        try:
            return decode_changes(load(bytes(stored)))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CorruptArtifact(f"{path.name} is of another format: {error}") from error

    def _write(self, name: str, changes: Changes) -> int:
        """Write one file aside and rename it; return its size in bytes."""
        from safetensors.numpy import save

        content = save(encode_changes(changes))
        aside = self._folder / f"{name}.new"
        failpoint("increment.before_write")
        try:
            with open(aside, "wb", buffering=0) as file:
                write_in_pieces(file.fileno(), self._check(content))
                write_in_pieces(file.fileno(), content)
                failpoint("increment.before_fsync")
                os.fsync(file.fileno())
            failpoint("increment.before_rename")
            aside.replace(self._folder / name)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        failpoint("increment.renamed")
        fsync_folder(self._folder)
        failpoint("increment.stored")
        return len(content) + _CHECK_BYTES

    def _check(self, content: bytes | memoryview) -> bytes:
        return hashlib.blake2b(content, digest_size=_CHECK_BYTES, key=self._key).digest()
