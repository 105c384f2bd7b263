"""An index on disk: `index.json` names its engine, shape and files; arrays are plain `.npy`.

The checks here find a foreign, cut or mislabelled folder before anything is loaded. They are no
protection against a forged file: a generation compares every file's checksum with its manifest
first, and only then is a native loader called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.errors import CorruptArtifact, DataError
from twotower.index.rows import VectorRows

__all__ = [
    "IndexHeader",
    "file_sizes",
    "new_folder",
    "read_array",
    "read_header",
    "read_rows",
    "write_header",
    "write_rows",
]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_MAGIC: Final = "twotower-index"
_FORMAT_VERSION: Final = 2
_READ_VERSIONS: Final = (1, 2)
"""Format 1 had no `filter_factor`."""
_HEADER_NAME: Final = "index.json"
_BLOCK: Final = 65_536
"""Labels compared at a time, so that what is compared stays in a cache."""


class IndexHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `index.json` says of its folder."""

    magic: str = _MAGIC
    format_version: int = _FORMAT_VERSION
    engine: str
    dimensions: int
    num_items: int
    effort: int | None = None
    """The chosen search effort of an approximate engine."""
    filter_factor: float = 1.0
    """How many times that effort a search with conditions makes."""
    files: dict[str, int]
    """Size of every file of the folder in bytes, by its name relative to the folder."""


def new_folder(folder: Path) -> None:
    """Make `folder`, which must be empty or not there.

    Raises:
        DataError: it holds something already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(
            f"expected an empty folder for the index, found files in {folder}; "
            "nothing was written; save to a new folder"
        )


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in `folder` and below it, in bytes, by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def write_header(folder: Path, header: IndexHeader) -> None:
    """Write `index.json`, after every other file of the folder."""
    (folder / _HEADER_NAME).write_bytes(msgspec.json.encode(header, order="sorted"))


def read_header(folder: Path) -> IndexHeader:
    """Return the header of a saved index, its files' names and sizes verified.

    Raises:
        CorruptArtifact: the folder is foreign, of another format, or not as it was written.
    """
    try:
        header = msgspec.json.decode((folder / _HEADER_NAME).read_bytes(), type=IndexHeader)
    except (OSError, msgspec.MsgspecError) as error:
        raise _refused(folder, f"{_HEADER_NAME} cannot be read: {error}") from error
    if header.magic != _MAGIC or header.format_version not in _READ_VERSIONS:
        found = f"{header.magic!r} version {header.format_version}"
        raise _refused(folder, f"expected {_MAGIC!r} version 1 to {_FORMAT_VERSION}, found {found}")
    sizes = file_sizes(folder)
    del sizes[_HEADER_NAME]
    if sizes != header.files:
        raise _refused(folder, f"expected files and bytes {header.files}, found {sizes}")
    return header


def write_rows(folder: Path, rows: VectorRows, prefix: str = "") -> None:
    """Write a set of labelled vectors as two arrays."""
    np.save(folder / f"{prefix}ids.npy", rows.ids, allow_pickle=False)
    np.save(folder / f"{prefix}vectors.npy", rows.vectors, allow_pickle=False)


def read_rows(folder: Path, dimensions: int, mmap: bool, prefix: str = "") -> VectorRows:
    """Return a set that `write_rows` wrote, mapped or in memory as `mmap` says.

    Raises:
        CorruptArtifact: an array has another type or shape, or the labels do not ascend.
    """
    ids = read_array(folder, f"{prefix}ids.npy", np.int64, (None,), mmap)
    shape = (len(ids), dimensions)
    vectors = read_array(folder, f"{prefix}vectors.npy", np.float32, shape, mmap)
    if not _ascend(ids):
        raise _refused(folder, f"expected ascending labels in {prefix}ids.npy")
    return VectorRows(ids, vectors)


def _ascend(ids: npt.NDArray[np.int64]) -> bool:
    """Return whether labels are 0 or more and each is above the one before, without a copy."""
    blocks = (ids[start : start + _BLOCK + 1] for start in range(0, len(ids), _BLOCK))
    return not len(ids) or bool(ids[0] >= 0 and all((b[1:] > b[:-1]).all() for b in blocks))


def read_array(
    folder: Path,
    name: str,
    dtype: type[_Scalar],
    shape: tuple[int | None, ...],
    mmap: bool,
) -> npt.NDArray[_Scalar]:
    """Return one stored array of that type and shape (None: any length).

    Raises:
        CorruptArtifact: the array is not what was expected.
    """
    try:
        array = np.load(folder / name, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _refused(folder, f"{name} cannot be read: {error}") from error
    fits = len(array.shape) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        wanted = f"{np.dtype(dtype)}{list(shape)}"
        raise _refused(folder, f"expected {wanted} in {name}, found {array.dtype}{array.shape}")
    return np.asarray(array)


def _refused(folder: Path, reason: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"the index in {folder} was not loaded: {reason}; publish it again or roll back"
    )
