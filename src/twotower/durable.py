"""Files that survive a power cut, and reading them without following a link.

A file is durable when its bytes *and* the folder that names it were fsynced: renaming alone may
leave an empty or an absent file after a crash. Nothing here follows a symbolic link in the last
part of a path; `member_files` refuses links in every part below its root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from twotower.errors import Busy, CorruptArtifact

__all__ = [
    "at_no_chunk",
    "at_nothing",
    "digest_file",
    "exclusive",
    "fsync_file",
    "fsync_folder",
    "is_held",
    "map_regular",
    "member_files",
    "read_ahead",
    "read_regular",
    "replace_file",
    "write_in_pieces",
]

Step = Callable[[str], None]

_CHUNK_BYTES: Final = 1 << 18
_PIECE_BYTES: Final = 1 << 18
_FLUSH_BYTES: Final = 8 << 20
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def at_nothing(step: str) -> None:
    """Do nothing at a named step: the default of everything that can be interrupted."""


def at_no_chunk() -> None:
    """Do nothing after a part of a file that was read."""


def fsync_file(path: Path) -> None:
    """Bring the bytes of `path` to the disk."""
    _fsync(path, os.O_RDONLY)


def fsync_folder(path: Path) -> None:
    """Bring the entries of the folder `path` to the disk: new names, renames, removals."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(
    path: Path,
    content: bytes | Iterable[memoryview],
    at_step: Step = at_nothing,
    *,
    mode: int = 0o644,
) -> None:
    """Make `content` the content of `path`: a reader sees the old bytes or the new, whole.

    Writes `.NAME.new` beside it with the permissions `mode`, fsyncs, renames, fsyncs the folder.
    Of content in parts, the disk takes what there is while the next parts are made. The caller
    holds the lock. Where the disk is full the old bytes stay, and nothing lies beside them.
    """
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    try:
        _write_aside(aside, content, at_step, mode)
        os.rename(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    at_step("rename")
    fsync_folder(path.parent)
    at_step("fsync_folder")


def _write_aside(
    aside: Path, content: bytes | Iterable[memoryview], at_step: Step, mode: int
) -> None:
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if isinstance(content, bytes):
            write_in_pieces(descriptor, content)
        else:
            _write_parts(descriptor, content)
        at_step("write_aside")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    at_step("fsync_aside")


def _write_parts(descriptor: int, parts: Iterable[memoryview]) -> None:
    """Write what comes; every some megabytes a thread brings what is written to the disk."""
    with ThreadPoolExecutor(max_workers=1) as threads:
        flushed, waiting_bytes = threads.submit(os.fdatasync, descriptor), 0
        for part in parts:
            write_in_pieces(descriptor, part)
            waiting_bytes += len(part)
            if waiting_bytes >= _FLUSH_BYTES and flushed.done():
                flushed.result()  # the kernel tells of an error once
                flushed, waiting_bytes = threads.submit(os.fdatasync, descriptor), 0
        flushed.result()


def _open_regular(path: Path) -> int:
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR):
            raise
        found = "a symbolic link" if error.errno == errno.ELOOP else "nothing"
        raise CorruptArtifact(f"expected a plain file at {path}, found {found}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptArtifact(f"expected a plain file at {path}, found something else")
    return descriptor


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of the plain file `path`, which must hold at most `max_bytes`.

    Raises:
        CorruptArtifact: it is missing, a link, no plain file, or too long.
    """
    with open(_open_regular(path), "rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise CorruptArtifact(f"expected at most {max_bytes} bytes in {path}, found more")
    return content


def map_regular(path: Path) -> mmap.mmap | bytes:
    """Return the bytes of the plain file `path`, mapped read-only; no bytes of an empty one.

    Pages are shared with every other process that maps the file, and nothing is copied.

    Raises:
        CorruptArtifact: it is missing, a link or no plain file.
    """
    descriptor = _open_regular(path)
    try:
        if not os.fstat(descriptor).st_size:
            return b""
        # not MAP_POPULATE: a file that must come from the disk would stop every thread meanwhile
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    finally:
        os.close(descriptor)


def read_ahead(path: Path) -> None:
    """Ask the kernel to have the plain file `path` in memory soon; waits for nothing.

    Raises:
        CorruptArtifact: it is missing, a link or no plain file.
    """
    descriptor = _open_regular(path)
    try:
        with contextlib.suppress(OSError, AttributeError):  # no Linux, or a file system without
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def write_in_pieces(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of `content`, some hundred kilobytes at a time.

    For tens of megabytes at once the kernel may look for memory in one piece, which on a machine
    that has little of it takes several times as long as the copy.
    """
    left = memoryview(content)
    while len(left):
        left = left[os.write(descriptor, left[:_PIECE_BYTES]) :]


def digest_file(path: Path, at_chunk: Callable[[], None] = at_no_chunk) -> tuple[int, str]:
    """Return size in bytes and BLAKE2b-256 digest of the plain file `path`.

    `at_chunk` is called after every quarter of a megabyte or less.

    Raises:
        CorruptArtifact: it is missing, a link or no plain file.
    """
    digest = hashlib.blake2b(digest_size=32)
    num_bytes = 0
    with open(_open_regular(path), "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
            at_chunk()
    return num_bytes, digest.hexdigest()


def member_files(root: Path) -> tuple[list[str], list[Path]]:
    """Return the files below `root` as sorted relative names, and all its folders, deepest first.

    Raises:
        CorruptArtifact: `root` is no plain folder, or something below is neither file nor folder.
    """
    if not stat.S_ISDIR(os.lstat(root).st_mode):
        raise CorruptArtifact(f"expected a plain folder at {root}, found something else")
    files: list[str] = []
    folders = [root]
    for folder in folders:  # grows while it is walked: breadth first
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    files.append(Path(entry.path).relative_to(root).as_posix())
                else:
                    raise CorruptArtifact(f"expected a plain file or folder, found {entry.path}")
    return sorted(files), folders[::-1]


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path` against every other process and thread.

    The kernel releases it when its holder dies, however it dies, so no stale lock is ever left.
    It is a lock of one machine: on a network file system it holds only where flock does.

    Raises:
        Busy: somebody else still holds it after `timeout_s` seconds.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o644)
    try:
        _lock(descriptor, purpose, time.monotonic() + timeout_s)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file `path` right now; nothing is made or kept."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, purpose: str, deadline_s: float) -> None:
    while not _try_lock(descriptor):
        if time.monotonic() >= deadline_s:
            raise Busy(
                f"another process is {purpose} in this store; nothing was changed; "
                "wait for it to end and try again"
            )
        time.sleep(0.01)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
