"""Atomic writes and listings of local folders, on file systems with and without hard links."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from data_specs.records import FileInfo

UNFINISHED = ".part"  # ends the names of what is still being written
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links answer
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


def find_file(uri: str) -> FileInfo | None:
    """Return the size and etag of a file, or None where there is none."""
    return _info(uri, os.stat(uri)) if os.path.isfile(uri) else None


def open_file(uri: str) -> BinaryIO:
    """Open a file to read. A pipe or device is one only under its name in /dev, as when --ids is /dev/stdin.

    Raises:
        OSError: there is no file: a pipe in a root would be waited for, and some devices never end.
    """
    mode = os.stat(uri).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or uri.startswith("/dev/")):
        raise OSError(errno.EINVAL, "not a file", uri)
    return open(uri, "rb")


def walk(folder: str) -> Iterator[FileInfo]:
    """Yield the files under a folder, in the order of whole names; files that vanish meanwhile are left out."""
    for entry, what in _entries(folder):
        if what == "a file":
            with suppress(FileNotFoundError):
                yield _info(entry.path, entry.stat())


def skipped_paths(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the paths that a listing of a folder leaves out, and why: links that lead nowhere or up, pipes, `.part`."""
    for entry, what in _entries(folder):
        if what != "a file":
            yield entry.path, "link to a folder above" if what == "a folder" else what


def not_files(folder: str) -> list[tuple[str, str]]:
    """Return the paths directly in a folder that are no files, and what they are: folders, links to nothing …"""
    found = ((entry.path, what) for entry, what in _scan(folder))
    return sorted((path, what) for path, what in found if what not in ("a file", "still being written"))


def _entries(folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield what is no folder, or a link to one that led here (`above`, as real paths), and what it is."""
    above = (*above, os.path.realpath(folder))
    by_whole_name = sorted(_scan(folder), key=lambda e: e[0].name + "/" * (e[1] == "a folder"))  # as on S3
    for entry, what in by_whole_name:
        if what == "a folder" and os.path.realpath(entry.path) not in above:
            yield from _entries(entry.path, above)
        else:
            yield entry, what


def _scan(folder: str) -> list[tuple[os.DirEntry[str], str]]:
    """Return what stands directly in a folder, and what each is; nothing of one that is not there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [(entry, _target_type(entry)) for entry in os.scandir(folder)]
    return []


def _target_type(entry: os.DirEntry[str]) -> str:
    """Return what stands at a path, or where its link leads."""
    if entry.name.endswith(UNFINISHED):
        return "still being written"
    with suppress(OSError):  # a link to itself
        if entry.is_dir() or entry.is_file():
            return "a folder" if entry.is_dir() else "a file"
    return "link to nothing" if entry.is_symlink() else "neither file nor folder"


def unfinished(folder: str) -> Iterator[str]:
    """Yield the paths under a folder of what was being written when its writer died; links are not followed."""
    found = [
        os.path.join(parent, name)
        for parent, folders, files in os.walk(folder, onerror=_refuse_unreadable)
        for name in (*folders, *files)
        if name.endswith(UNFINISHED)
    ]
    for path in sorted(found):
        if os.path.lexists(path):  # else removed meanwhile with the folder that held it
            yield path


def own_files(folder: str) -> Iterator[str]:
    """Yield the paths of the files and links under a folder; links in it are not followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in (*links, *files))


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # removed meanwhile
        raise error


def remove_unfinished(path: str) -> None:
    """Remove one of them, a file or a folder; a link goes, what it points to stays."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


@contextmanager
def no_empty_folders_left(folder: str) -> Iterator[None]:
    """Remove the folders that the block has made in and above one, as far as they are empty, where it raises."""
    above = list(map(str, Path(folder).parents))
    there = {path for path in (*above, *_folders(folder)) if os.path.isdir(path)}
    try:
        yield
    except BaseException:
        for path in (*_folders(folder), *above):
            if path not in there:
                with suppress(OSError):  # it holds something, or was never made
                    os.rmdir(path)
        raise


def _folders(folder: str) -> list[str]:
    """Return a folder and those in it, the inner ones first."""
    return [parent for parent, _, _ in os.walk(folder, topdown=False)]


def _info(uri: str, status: os.stat_result) -> FileInfo:
    return FileInfo(uri, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def replace(uri: str, content: bytes | Path) -> None:
    """Write bytes or a copy of a file, over what is there."""
    with _temporary_beside(uri, content) as path:
        os.replace(path, uri)


def create(uri: str, content: bytes | Path) -> bool:
    """Write bytes or a copy of a file if the name is free; True if this call did."""
    if os.path.exists(uri):
        return False
    try:
        with _temporary_beside(uri, content) as path:
            if not _move_exclusively(path, Path(uri)):
                _move_under_lock(path, Path(uri))
    except FileExistsError:
        if not os.path.exists(uri) and os.path.islink(uri):
            raise FileNotFoundError(errno.ENOENT, "a link to nothing", uri) from None
        return False
    return True


def link_or_copy(path: Path, target: Path) -> None:
    """Give a file a second name, or make a copy of it where the file system has no such links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def move(uri: str, path: Path) -> None:
    """Sync a file and rename it to `uri`, on the same file system, over what is there."""
    _make_folder(Path(uri).parent)
    _bring_to_disk(path)
    os.replace(path, uri)


@contextmanager
def folder_in(uri: str) -> Iterator[Path]:
    """Make an empty folder within a folder, which listings leave out and which is removed at the end."""
    _make_folder(Path(uri))
    with tempfile.TemporaryDirectory(UNFINISHED, ".dnd-write-", uri) as name:
        yield Path(name)


def decides_who_creates(folder: str) -> bool:
    """Return whether the file system itself refuses a name that is taken."""
    with folder_in(folder) as probe:
        (probe / "file").touch()
        return _move_exclusively(probe / "file", probe / "free name")


@contextmanager
def _temporary_beside(uri: str, content: bytes | Path) -> Iterator[Path]:
    """Write the content to a file beside its target, synced; whatever is left of it at the end is removed."""
    target = Path(uri)
    _make_folder(target.parent)
    path = target.parent / f".{target.name}.{uuid4().hex}{UNFINISHED}"
    try:
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
        _bring_to_disk(path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # to `create` it would say that another was first
        raise NotADirectoryError(errno.ENOTDIR, "no folder, or a link to nothing", error.filename) from None


def _bring_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _move_exclusively(path: Path, target: Path) -> bool:
    """Rename unless the name is taken (FileExistsError); False where the file system cannot do that atomically."""
    try:
        os.link(path, target)
        return True
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    libc = ctypes.CDLL(None, use_errno=True)
    if not libc.renameat2(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(target))


def _move_under_lock(path: Path, target: Path) -> None:
    """Rename unless the name is taken, under a lock on the folder: atomic among the processes of one node."""
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.replace(path, target)
    finally:
        os.close(folder)
