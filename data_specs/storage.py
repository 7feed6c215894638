"""Storage by URI: the one place that reads and writes files, a local path or `s3://bucket/key`.

Writes are whole or absent: a reader never sees half a file. `create_*` never overwrites and says who won.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from data_specs.records import FileInfo
from data_specs.scratch import scratch_folder

READS_IN_FLIGHT = 16
PART = ".part"  # ends the names of what is still being written
_AT_EXIT = ExitStack()
atexit.register(_AT_EXIT.close)


class Backend(Protocol):
    """What a kind of storage must do; each function is documented below under its public name."""

    def read_bytes(self, uri: str, start: int | None, length: int | None) -> bytes: ...
    def open_stream(self, uri: str) -> BinaryIO: ...
    def write_file(self, path: Path, uri: str) -> None: ...
    def create_from_file(self, path: Path, uri: str) -> bool: ...
    def write_bytes(self, uri: str, data: bytes) -> None: ...
    def create_if_absent(self, uri: str, data: bytes) -> bool: ...
    def list_files(self, uri: str) -> Iterator[FileInfo]: ...
    def list_folders(self, uri: str) -> list[str]: ...
    def stat(self, uri: str) -> FileInfo | None: ...
    def delete(self, uri: str) -> None: ...
    def local_copy(self, uri: str) -> Path: ...


def is_remote(uri: str) -> bool:
    """Whether the URI names an object store rather than a local path."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """`root` + parts; a part that is itself absolute or remote replaces what stands before it."""
    for part in parts:
        uri = part if is_remote(part) or part.startswith("/") else f"{uri.rstrip('/')}/{part}"
    return uri


def absolute(uri: str) -> str:
    """A root as workers on any node must see it: local paths made absolute."""
    return uri.rstrip("/") if is_remote(uri) else str(Path(uri).absolute())


def read_bytes(uri: str, start: int | None = None, length: int | None = None) -> bytes:
    """The file's bytes, or `length` of them from `start`. Raises FileNotFoundError."""
    return _backend(uri).read_bytes(uri, start, length)


def read_many(uris: Iterable[str]) -> Iterator[bytes | None]:
    """The contents of many small files in the order given, None where absent; several requests at once where remote."""
    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        waiting: deque[Future[bytes | None]] = deque()
        for uri in uris:
            if is_remote(uri):
                waiting.append(pool.submit(_read_if_there, uri))
            else:
                yield _read_if_there(uri)
            if len(waiting) == 4 * READS_IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_if_there(uri: str) -> bytes | None:
    try:
        return read_bytes(uri)
    except FileNotFoundError:
        return None


def read_text(uri: str) -> str:
    """The file as UTF-8 text. Raises FileNotFoundError."""
    return read_bytes(uri).decode("utf-8")


def read_lines(uri: str) -> Iterator[str]:
    """Lines of a UTF-8 file in streaming fashion, split at newline only, without it."""
    with open_stream(uri) as stream:
        for line in stream:
            yield line.decode("utf-8").rstrip("\n")


def open_stream(uri: str) -> BinaryIO:
    """A binary file to read from start to end. Raises FileNotFoundError."""
    return _backend(uri).open_stream(uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes or replaces a file, atomically."""
    _backend(uri).write_bytes(uri, data)


def write_text(uri: str, text: str) -> None:
    """Writes or replaces a UTF-8 file, atomically."""
    write_bytes(uri, text.encode("utf-8"))


def write_file(path: Path, uri: str) -> None:
    """Uploads or copies a local file, atomically, replacing what is there."""
    _backend(uri).write_file(path, uri)


def create_if_absent(uri: str, data: bytes) -> bool:
    """Writes a file unless it is there already; True if this call made it."""
    return _backend(uri).create_if_absent(uri, data)


def create_from_file(path: Path, uri: str) -> bool:
    """Uploads or copies a local file unless the target is there already; True if this call made it."""
    return _backend(uri).create_from_file(path, uri)


def list_files(uri: str) -> Iterator[FileInfo]:
    """All files under a folder, at any depth, in order of name. An absent folder is empty."""
    return _backend(uri).list_files(uri)


def list_folders(uri: str) -> list[str]:
    """Addresses of the folders directly in a folder, in order of name."""
    return _backend(uri).list_folders(uri)


def stat(uri: str) -> FileInfo | None:
    """The file's facts, or None where there is no such file."""
    return _backend(uri).stat(uri)


def exists(uri: str) -> bool:
    """Whether there is a file of this name."""
    return stat(uri) is not None


def delete(uri: str) -> None:
    """Removes a file; an absent one is no error."""
    _backend(uri).delete(uri)


def local_copy(uri: str) -> Path:
    """A local path with the file's content: the file itself, or a cached download shared by the processes of a node."""
    return _backend(uri).local_copy(uri)


def local_folder(uri: str) -> Path:
    """A local folder with all files of a folder: itself, or links to cached downloads for as long as the process lives.

    Raises FileNotFoundError if it is empty, ValueError for names that would lie outside.
    """
    if not is_remote(uri):
        return Path(uri)
    folder = _AT_EXIT.enter_context(scratch_folder())
    for file in list_files(uri):
        name = file.uri.removeprefix(uri.rstrip("/") + "/")
        if ".." in name.split("/") or name.startswith("/"):
            raise ValueError(f"{file.uri}: a name that leaves its folder; rename it")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _link(local_copy(file.uri), folder / name)
    if not any(folder.iterdir()):
        raise FileNotFoundError(f"{uri}: no such folder")
    return folder


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)  # outlives the file's removal from the cache
    except OSError:
        target.symlink_to(path)


@contextmanager
def writable_folder(uri: str) -> Iterator[Path]:
    """A local folder to write into, whose files are placed under `uri`, each whole, when the block ends well.

    Where `uri` is local they are moved, not copied: large ones need room once, and hard links stay links.
    """
    if is_remote(uri):
        made: AbstractContextManager[Path | str] = scratch_folder()
    else:
        Path(uri).mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(PART, ".dnd-write-", uri)
    with made as name:
        yield (folder := Path(name))
        place = write_file if is_remote(uri) else _LOCAL.move
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            place(path, join(uri, str(path.relative_to(folder))))


def _backend(uri: str) -> Backend:
    if not is_remote(uri):
        return _LOCAL
    from data_specs import s3  # boto3 takes half a second to import

    return s3.backend()


class _LocalFiles:
    def read_bytes(self, uri: str, start: int | None, length: int | None) -> bytes:
        with open(uri, "rb") as file:
            file.seek(start or 0)
            return file.read(-1 if length is None else length)

    def open_stream(self, uri: str) -> BinaryIO:
        return open(uri, "rb")

    def write_bytes(self, uri: str, data: bytes) -> None:
        self._place(uri, lambda path: path.write_bytes(data), os.replace)

    def write_file(self, path: Path, uri: str) -> None:
        self._place(uri, lambda target: shutil.copyfile(path, target), os.replace)

    def move(self, path: Path, uri: str) -> None:
        """A file of the same file system, brought to disk and then into place."""
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, uri)

    def create_if_absent(self, uri: str, data: bytes) -> bool:
        return self._create(uri, lambda path: path.write_bytes(data))

    def create_from_file(self, path: Path, uri: str) -> bool:
        return self._create(uri, lambda target: shutil.copyfile(path, target))

    def _create(self, uri: str, fill: object) -> bool:
        if os.path.exists(uri):
            return False
        try:
            self._place(uri, fill, os.link)
        except FileExistsError:
            return False
        return True

    def _place(self, uri: str, fill, move) -> None:  # type: ignore[no-untyped-def]
        """Fills a file beside the target, brings it to disk, then moves it into place (os.replace or os.link)."""
        target = Path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.parent / f".{target.name}.{uuid4().hex}{PART}"
        try:
            fill(beside)
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            move(beside, target)
        finally:
            beside.unlink(missing_ok=True)

    def list_files(self, uri: str) -> Iterator[FileInfo]:
        if os.path.isfile(uri):
            yield self._info(uri, os.stat(uri))
            return
        entries = list(os.scandir(uri)) if os.path.isdir(uri) else []
        for entry in sorted(entries, key=lambda e: e.name + "/" * e.is_dir()):  # the order of whole names, as on S3
            if entry.name.endswith(PART):
                continue
            if entry.is_dir():
                yield from self.list_files(entry.path)
            else:
                yield self._info(entry.path, entry.stat())

    def list_folders(self, uri: str) -> list[str]:
        entries = os.scandir(uri) if os.path.isdir(uri) else ()
        return sorted(entry.path for entry in entries if entry.is_dir())

    def stat(self, uri: str) -> FileInfo | None:
        return self._info(uri, os.stat(uri)) if os.path.isfile(uri) else None

    def _info(self, uri: str, facts: os.stat_result) -> FileInfo:
        return FileInfo(uri, facts.st_size, f"{facts.st_mtime_ns:x}-{facts.st_size:x}")

    def delete(self, uri: str) -> None:
        Path(uri).unlink(missing_ok=True)

    def local_copy(self, uri: str) -> Path:
        path = Path(uri)
        if not path.is_file():
            raise FileNotFoundError(f"{uri}: no such file")
        return path


_LOCAL = _LocalFiles()
