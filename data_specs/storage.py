"""Storage by URI: the one place that reads and writes files, a local path or `s3://bucket/key`.

Each verb is a function here whose body serves local paths; `s3.py` has functions of the same names for s3://, and
`fsspec_files.py` those that read, for the other schemes that fsspec knows (sources may lie there, a root may not).
Writes are whole or absent: a reader never sees half a file. `create` never overwrites and says who won.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import BinaryIO, Concatenate, ParamSpec, TypeVar, cast

from data_specs import local_files
from data_specs.ahead import in_threads
from data_specs.records import FileInfo
from data_specs.scratch import scratch_folder

READS_IN_FLIGHT = 16
_AT_EXIT = ExitStack()
atexit.register(_AT_EXIT.close)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


# ---- addresses -----------------------------------------------------------------------------------------------------
def scheme_of(uri: str) -> str:
    """Return the scheme of an address, "" for a local path."""
    return uri.partition("://")[0] if re.match("[^/]*://", uri) else ""


def is_remote(uri: str) -> bool:
    """Return whether the URI has a scheme, so that it is no local path."""
    return scheme_of(uri) != ""


def is_address(text: str) -> bool:
    """Return whether a text begins as an address with a scheme does, also a misspelt one (`:/x`, `s3:/x`)."""
    return re.match(r":/|\w[\w+.-]*:/", text) is not None


def join(uri: str, *parts: str) -> str:
    """Join parts to `uri`; a part that is itself absolute or remote replaces what stands before it."""
    for part in parts:
        uri = part if is_remote(part) or part.startswith("/") else f"{uri.rstrip('/')}/{part}"
    return uri


def below(root: str, name: str) -> str:
    """Return the address of what is to be written by a name under the root, or at an address of its own.

    Raises:
        ValueError: nothing can be written at such an address.
    """
    return absolute(name) if is_address(name) else join(root, name)


def absolute(uri: str, is_source: bool = False) -> str:
    """Return the address of a root as every node sees it: local paths are made absolute.

    Args:
        is_source: it is only read, and may lie wherever fsspec reads.

    Raises:
        ValueError: a root cannot have such an address.
    """
    scheme = scheme_of(uri)
    if not is_source and (scheme not in ("", "s3") or (not scheme and is_address(uri))):
        raise ValueError(f"{uri}: a root is a folder or s3://bucket/prefix, not {scheme or uri.partition(':')[0]}://")
    if not scheme:
        return str(Path(uri).absolute())
    if scheme == "s3":
        split_bucket(uri)
    return uri.rstrip("/")


def split_bucket(uri: str) -> tuple[str, str]:
    """Return the bucket and key of an s3:// address.

    Raises:
        ValueError: it names no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{uri}: names no bucket; write s3://bucket/key")
    return bucket, key


def _verb(local: Callable[Concatenate[str, _Arguments], _Result]) -> Callable[Concatenate[str, _Arguments], _Result]:
    """Make a verb of a function for local paths: calls for other addresses go to its namesake in their module."""

    @wraps(local)
    def call(uri: str, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if not (scheme := scheme_of(uri)):
            return local(uri, *args, **kwargs)
        module = import_module("data_specs.s3" if scheme == "s3" else "data_specs.fsspec_files")  # boto3 is slow
        if not (scheme == "s3" or module.reads(scheme)):
            raise ValueError(f"{uri}: {scheme}:// is not known; write a path, s3://bucket/key or, to read, gs:// …")
        if not hasattr(module, local.__name__):
            raise ValueError(f"{uri}: {scheme}:// is only read, as a source; write to a folder or s3://bucket/prefix")
        return cast(_Result, getattr(module, local.__name__)(uri, *args, **kwargs))

    return call


# ---- reading -------------------------------------------------------------------------------------------------------
@_verb
def read_bytes(uri: str, start: int | None = None, length: int | None = None) -> bytes:
    """Return the file's bytes, or `length` of them from `start`.

    Raises:
        FileNotFoundError: there is none.
    """
    with local_files.open_file(uri) as file:
        if start:
            file.seek(start)
        return file.read(-1 if length is None else length)


@_verb
def open_stream(uri: str) -> BinaryIO:
    """Return a binary file to read from start to end.

    Raises:
        FileNotFoundError: there is none.
    """
    return local_files.open_file(uri)


@_verb
def stat(uri: str) -> FileInfo | None:
    """Return the size and etag of a file, or None where there is no such file."""
    return local_files.find_file(uri)


@_verb
def list_files(uri: str) -> Iterator[FileInfo]:
    """List the files under a folder, at any depth, in order of name; a file is its own list, an absent folder is empty.

    Symbolic links to folders are followed, but not in a circle; what is gone when its turn comes is left out.
    """
    if itself := local_files.find_file(uri):
        yield itself
    elif os.path.isdir(uri):
        yield from local_files.walk(uri)


@_verb
def list_folders(uri: str, linked: bool = False) -> list[str]:
    """Return the addresses of the folders directly in a folder, in order of name; symbolic links where asked for."""
    entries = os.scandir(uri) if os.path.isdir(uri) else ()
    return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=linked))


@_verb
def local_copy(uri: str, wait: Event | None = None) -> Path:
    """Return a local path with the content: the file itself, or a cached download shared by the processes of a node.

    Args:
        wait: makes a download wait for room in the cache, until it is set; None lets it exceed the limit.
    """
    if not os.path.isfile(uri):
        raise FileNotFoundError(f"{uri}: no such file")
    return Path(uri)


def read_many(folder: str, names: Iterable[str]) -> Iterator[bytes | None]:
    """Read many small files in the order given, None where absent; several requests at once where remote."""
    calls = (partial(_read_if_there, join(folder, name)) for name in names)
    return in_threads(calls, READS_IN_FLIGHT, 4 * READS_IN_FLIGHT) if is_remote(folder) else (call() for call in calls)


def read_text(uri: str) -> str:
    """Return the file as UTF-8 text.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds other bytes.
    """
    try:
        return read_bytes(uri).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{uri}: not a text in UTF-8 (byte {error.start})") from None


def exists(uri: str) -> bool:
    """Return whether there is a file of this name."""
    return stat(uri) is not None


def local_folder(uri: str) -> Path:
    """Return a local folder with all files of a folder: itself, or cached downloads for as long as the process lives.

    Raises:
        FileNotFoundError: it is empty.
        ValueError: a name would lie outside.
    """
    if not is_remote(uri):
        return Path(uri)
    folder = _AT_EXIT.enter_context(scratch_folder())
    for file in list_files(uri):
        name = file.uri.removeprefix(uri.rstrip("/") + "/")
        if ".." in name.split("/") or name.startswith("/"):
            raise ValueError(f"{file.uri}: a name that leaves its folder; rename it")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        local_files.link_or_copy(local_copy(file.uri), folder / name)  # outlives the file's removal from the cache
    if not any(folder.iterdir()):
        raise FileNotFoundError(f"{uri}: no such folder")
    return folder


# ---- writing -------------------------------------------------------------------------------------------------------
@_verb
def write(uri: str, content: bytes | Path) -> None:
    """Write or replace a file, atomically: bytes, or a copy of a local file."""
    local_files.replace(uri, content)


@_verb
def create(uri: str, content: bytes | Path) -> bool:
    """Write bytes or a copy of a local file unless the name is taken; True if this call made it."""
    return local_files.create(uri, content)


@_verb
def decides_who_creates(uri: str) -> bool:
    """Return whether the storage refuses one of two simultaneous `create` of a name here; else the last one wins."""
    return local_files.decides_who_creates(uri)


@_verb
def delete(uri: str) -> None:
    """Remove a file, of a symbolic link the link alone; an absent one is no error."""
    Path(uri).unlink(missing_ok=True)


def write_text(uri: str, text: str) -> None:
    """Write or replace a UTF-8 file, atomically."""
    write(uri, text.encode("utf-8"))


@contextmanager
def writable_folder(uri: str) -> Iterator[Path]:
    """Make a local folder to write into; its files are placed under `uri`, each whole, when the block ends well.

    Where `uri` is local they are moved, not copied: large ones need room once, and hard links stay links.
    """
    with scratch_folder() if is_remote(uri) else local_files.folder_in(uri) as folder:
        yield folder
        put = write if is_remote(uri) else local_files.move
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            put(join(uri, str(path.relative_to(folder))), path)


def _read_if_there(uri: str) -> bytes | None:
    with suppress(FileNotFoundError):
        return read_bytes(uri)
    return None
