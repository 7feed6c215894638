"""A cache of remote files on the local disk, shared by the processes of a node and bounded in size.

DND_CACHE names its folder (default: dnd-cache-UID under the temp folder), DND_CACHE_BYTES its limit
(default: half of what the disk has free for it). Files are whole or absent; the least recently used go first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from data_specs.scratch import private_folder

IN_USE_SECONDS = 60.0  # a file handed out this recently stays; one that is open or mapped outlives its removal (Unix)
STALE_SECONDS = 3600.0  # a part file this old belongs to a process that died
_LOCKS = 64


def folder() -> Path:
    """The cache's folder, made on demand for this user only. Raises ValueError if it is another user's."""
    return private_folder(os.environ.get("DND_CACHE") or f"dnd-cache-{os.getuid()}")


def limit_bytes() -> int:
    """The size that the cache may have. Raises ValueError if DND_CACHE_BYTES is not a number."""
    text = os.environ.get("DND_CACHE_BYTES")
    if text is None:
        return (shutil.disk_usage(folder()).free + _total(_entries())) // 2
    if not text.isdecimal():
        raise ValueError(f"DND_CACHE_BYTES={text}: give a number of bytes")
    return int(text)


def local_copy(key: str, name: str, size: int | None, fill: Callable[[Path], None]) -> Path:
    """The cached file of a key, made by `fill(path)` if it is not there; processes that want the same wait for one.

    key: says where the content comes from and which version it is. name: end of the local file's name. size: bytes;
    None where that is not known before.
    Raises OSError if what `fill` made has another size, or the disk is full.
    """
    code = hashlib.sha256(key.encode()).hexdigest()
    path = folder() / f"{code[:32]}-{re.sub('[^A-Za-z0-9._-]', '_', name)[-100:]}"
    if _touch(path):
        return path
    with FileLock(folder() / f"lock-{int(code, 16) % _LOCKS:02d}"):
        if not _touch(path):
            _fill(path, size, fill)
    return path


def _touch(path: Path) -> bool:
    """Marks a cached file as used now; False if there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _fill(path: Path, size: int | None, fill: Callable[[Path], None]) -> None:
    make_room(size or 0)
    part = path.with_name(f"{path.name}.part")
    try:
        fill(part)
        if size not in (None, part.stat().st_size):
            raise OSError(f"{path.name}: got {part.stat().st_size} bytes of {size}")
        os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some, set DND_CACHE to a larger disk, or lower DND_CACHE_BYTES"
            raise OSError(error.errno, f"no space for the cache: {remedy}", str(path.parent)) from None
        raise
    finally:
        part.unlink(missing_ok=True)


def make_room(size: int) -> None:
    """Removes the least recently used files until `size` more bytes fit, but none that was handed out just now."""
    with FileLock(folder() / "lock-evict"):
        entries = _entries()
        excess = _total(entries) + size - limit_bytes()
        for used, length, path in sorted(entries):
            half_made, idle = path.suffix == ".part", time.time() - used
            if idle > STALE_SECONDS if half_made else excess > 0 and idle > IN_USE_SECONDS:
                path.unlink(missing_ok=True)
                excess -= length


def _entries() -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of each cached or half-made file."""
    found = []
    for entry in os.scandir(folder()):
        try:
            facts = entry.stat()
        except FileNotFoundError:
            continue
        if not entry.name.startswith("lock-"):
            found.append((facts.st_mtime, facts.st_size, Path(entry.path)))
    return found


def _total(entries: list[tuple[float, int, Path]]) -> int:
    return sum(length for _, length, _ in entries)
