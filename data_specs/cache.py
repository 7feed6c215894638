"""A cache of remote files on the local disk, shared by the processes of a node and bounded in size.

DND_CACHE names the folder that it makes its own in (default: the temp folder), DND_CACHE_BYTES its limit (default: half
of what the disk has free for it). Files are whole or absent; the least recently used go first, none that is in use.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock

from data_specs.scratch import private_folder

IN_USE_SECONDS = 60.0  # a file whose path was handed out this recently stays
STALE_SECONDS = 3600.0  # an unfinished file this old belongs to a process that died
POLL_SECONDS = 0.2  # between looks for room
WARN_SECONDS = 60.0  # between words about it
UNFINISHED = "+part"  # ends the names of half-made files; no other name has a plus
_LOCKS = 64
_NAME = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]{1,100}(\+part)?")
log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    used: float  # time of last use
    size: int
    path: Path


def folder() -> Path:
    """Return the cache's folder, made on demand for this user only.

    Raises:
        ValueError: it is another user's.
    """
    return private_folder(os.path.join(os.environ.get("DND_CACHE", ""), f"dnd-cache-{os.getuid()}"))


def limit_bytes() -> int:
    """Return the size that the cache may have.

    Raises:
        ValueError: DND_CACHE_BYTES is not a number.
    """
    text = os.environ.get("DND_CACHE_BYTES")
    if text is None:
        return (shutil.disk_usage(folder()).free + sum(entry.size for entry in _entries())) // 2
    if not text.isdecimal():
        raise ValueError(f"DND_CACHE_BYTES={text}: give a number of bytes")
    return int(text)


def local_copy(
    key: str, name: str, size: int | None, fill: Callable[[Path], None], wait: threading.Event | None = None
) -> Path:
    """Return the cached file of a key; processes that want the same wait for one.

    Args:
        key: identifies the content: its address and version.
        name: end of the local file's name.
        size: bytes; None where that is not known before.
        fill: writes the content to a path, where an empty file of that size may lie.
        wait: makes the call wait for room, until it is set; None lets a file that does not fit exceed the limit.

    Raises:
        OSError: the content has another size, the disk is full, or `wait` was set.
    """
    code = hashlib.sha256(key.encode()).hexdigest()
    path = folder() / f"{code[:32]}-{re.sub('[^A-Za-z0-9._-]', '_', name)[-100:]}"
    began = warned = time.monotonic()
    while not _touch(path):
        with FileLock(folder() / f"lock-{int(code, 16) % _LOCKS:02d}"):
            if _touch(path) or _fill(path, size, fill, wait is None):
                return path
        if wait is None or wait.wait(POLL_SECONDS):
            raise OSError(f"{path.name}: found no room in the cache, and is no longer wanted")
        if time.monotonic() - warned > WARN_SECONDS:
            warned = time.monotonic()
            log.warning("%s: full of files in use for %.0f s; raise DND_CACHE_BYTES", folder(), warned - began)
    return path


def hold(file: BinaryIO) -> None:
    """Protect a cached file from eviction while this open file, or a memory map of it, exists."""
    fcntl.flock(file, fcntl.LOCK_SH)
    status = os.fstat(file.fileno())
    os.utime(file.fileno(), ns=(time.time_ns() - int(IN_USE_SECONDS * 1e9), status.st_mtime_ns))


def discard(path: Path) -> None:
    """Remove a file that turned out to be damaged, if the cache made it."""
    if path.parent == folder() and _NAME.fullmatch(path.name):
        path.unlink(missing_ok=True)


def _touch(path: Path) -> bool:
    """Mark a cached file as used now; False if there is none."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _fill(path: Path, size: int | None, fill: Callable[[Path], None], at_once: bool) -> bool:
    """Fill a file; False where there is no room for it, unless it is needed at once."""
    unfinished = path.with_name(path.name + UNFINISHED)
    if not _reserve(unfinished, size or 0, at_once):
        return False
    try:
        fill(unfinished)
        if size not in (None, unfinished.stat().st_size):
            raise OSError(f"{path.name}: got {unfinished.stat().st_size} bytes of {size}")
        with _eviction():  # who counts meanwhile would find neither name
            os.replace(unfinished, path)
        return True
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some, set DND_CACHE to a larger disk, or lower DND_CACHE_BYTES"
            raise OSError(error.errno, f"no space for the cache: {remedy}", str(path.parent)) from None
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def _reserve(unfinished: Path, size: int, at_once: bool) -> bool:
    """Make room, and an empty file of the size, which counts for all processes from now on; False without room."""
    with _eviction():
        if _evict(size) > 0 and not at_once:
            return False
        with unfinished.open("wb") as file:
            file.truncate(size)
    return True


def _eviction() -> FileLock:
    """Return the lock under which files are counted, named and evicted."""
    return FileLock(folder() / "lock-evict")


def _evict(size: int) -> int:
    """Evict the least recently used files, none in use, until `size` more bytes fit; return the bytes that do not."""
    entries = sorted(_entries())
    excess = sum(entry.size for entry in entries) + size - limit_bytes()
    for entry in entries:
        idle = time.time() - entry.used
        if entry.path.name.endswith(UNFINISHED):
            gone = idle > STALE_SECONDS
        else:
            gone = excess > 0 and idle > IN_USE_SECONDS and not _is_held(entry.path)
        if gone:
            entry.path.unlink(missing_ok=True)
            excess -= entry.size
    return excess


def _is_held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _entries() -> list[_Entry]:
    """List the cache's own files, complete and unfinished; other files in its folder are ignored."""
    found = []
    for entry in os.scandir(folder()):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            used = status.st_mtime if entry.name.endswith(UNFINISHED) else status.st_atime
            found.append(_Entry(used, status.st_size, Path(entry.path)))
    return found
