"""A generation while it is written: files, then checksums, then one rename."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.durable import (
    Step,
    digest_file,
    fsync_file,
    fsync_folder,
    member_files,
)
from twotower.publishing.generation import Generation, open_array
from twotower.publishing.manifest import (
    MANIFEST,
    MANIFEST_DIGEST,
    FileEntry,
    Manifest,
    check_member,
    digest_bytes,
    encode_manifest,
)

__all__ = ["Staging"]

_READ_ONLY = 0o444


class Staging:
    """The folder `path` that becomes the generation `name` by `commit`, called at most once."""

    def __init__(self, name: str, path: Path, at_step: Step) -> None:
        self.name = name
        self.path = path
        self._at_step = at_step
        path.mkdir()
        at_step("stage.made")

    def file(self, member: str) -> Path:
        """Return the path of a new file or folder, its parent made."""
        path = self.path / check_member(member)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, member: str, content: bytes) -> None:
        """Write a new file."""
        with open(self.file(member), "xb") as stream:
            stream.write(content)
        self._at_step(f"stage.write {member}")

    def write_array(self, member: str, array: npt.NDArray[Any]) -> None:
        """Write a new `.npy` file; an array of objects is refused, so nothing is ever pickled."""
        with open(self.file(member), "xb") as stream:
            np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
        self._at_step(f"stage.write {member}")

    def read(self, member: str) -> bytes:
        """Return the bytes of a file written before."""
        return (self.path / check_member(member)).read_bytes()

    def array(self, member: str) -> npt.NDArray[Any]:
        """Return an array written before, mapped; it stays valid after `commit`."""
        return open_array(self.path / check_member(member))

    def commit(self, manifest: Manifest) -> Generation:
        """Make the folder durable and give it its name; it is published, and not yet live.

        Args:
            manifest: All but `name` and `files`, which are filled in here.
        """
        names, _ = member_files(self.path)
        files = {check_member(member): self._seal(member) for member in names}
        manifest = msgspec.structs.replace(manifest, name=self.name, files=files)
        content = encode_manifest(manifest)
        digest = digest_bytes(content)
        self._write_sealed(MANIFEST, content)
        self._write_sealed(MANIFEST_DIGEST, f"{digest}  {MANIFEST}\n".encode())
        for folder in member_files(self.path)[1]:
            fsync_folder(folder)
        self._at_step("commit.folders")
        target = self.path.with_name(self.name)
        os.rename(self.path, target)
        self._at_step("commit.rename")
        fsync_folder(target.parent)
        self._at_step("commit.parent")
        return Generation(target, manifest, digest)

    def _seal(self, member: str) -> FileEntry:
        path = self.path / member
        path.chmod(_READ_ONLY)
        fsync_file(path)
        num_bytes, digest = digest_file(path)
        self._at_step(f"commit.seal {member}")
        return FileEntry(num_bytes, digest)

    def _write_sealed(self, member: str, content: bytes) -> None:
        path = self.path / member
        path.write_bytes(content)
        path.chmod(_READ_ONLY)
        fsync_file(path)
        self._at_step(f"commit.{member}")
