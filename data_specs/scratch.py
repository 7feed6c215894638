"""Folders for work in progress, on the local disk and for one process.

A process that is killed cannot tidy up: whoever needs a folder next removes those whose owners are gone, so that a
node on which workers die again and again keeps its disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

LOCK = ".lock"  # beside each folder, held as long as its owner lives


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make an empty folder under $TMPDIR, removed when the block ends.

    Raises:
        ValueError: its parent folder is another user's.
    """
    home = private_folder(f"dnd-scratch-{os.getuid()}")
    folder = home / uuid4().hex
    owner = FileLock(f"{folder}{LOCK}", thread_local=False)
    with FileLock(home / "making"):  # so that no folder is seen before its lock is held
        _remove_abandoned(home)
        owner.acquire()
        folder.mkdir()
    try:
        yield folder
    finally:
        _remove(folder)
        owner.release()


def private_folder(name: str) -> Path:
    """Make a folder under $TMPDIR, or at a path, for this user only.

    Raises:
        ValueError: it is another user's.
    """
    path = Path(tempfile.gettempdir(), name)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise ValueError(f"{path}: belongs to another user; set TMPDIR (for the cache: DND_CACHE) to a folder of yours")
    return path


def _remove_abandoned(home: Path) -> None:
    for path in home.glob(f"*{LOCK}"):
        lock = FileLock(path, timeout=0)
        try:
            with lock:
                _remove(path.with_suffix(""))
        except Timeout:
            continue


def _remove(folder: Path) -> None:
    """Remove the folder, then the lock of it, which the caller holds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(LOCK).unlink(missing_ok=True)
