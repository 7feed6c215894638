"""What fsspec reads besides (gs://, az://, hf://, https:// …), for sources alone: the reading verbs of `storage`.

Each scheme's own package may be needed, as fsspec then says: gcsfs for gs://, adlfs for az://; https:// and hf:// work.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from data_specs import cache, storage
from data_specs.records import FileInfo
from data_specs.text import one_line

_OURS = ("s3", "s3a", "file", "local")  # read by storage itself, under one name each
_VERSIONS = (
    *("ETag", "etag", "md5", "md5Hash", "generation", "blob_id"),
    *("mtime", "updated", "last_modified", "LastModified", "Last-Modified", "created"),
)


def reads(scheme: str) -> bool:
    """Return whether there is a file system of this scheme that storage does not read itself."""
    return scheme not in _OURS and scheme in fsspec.available_protocols()


def read_bytes(uri: str, start: int | None = None, length: int | None = None) -> bytes:
    with _opened(uri) as (files, path):
        begin = start or 0
        if length == 0:
            return b""
        return cast(bytes, files.cat_file(path, start, None if length is None else begin + length))


def open_stream(uri: str) -> BinaryIO:
    with _opened(uri) as (files, path):
        return cast(BinaryIO, files.open(path, "rb"))


def stat(uri: str) -> FileInfo | None:
    with _opened(uri) as (files, path):
        if not files.exists(path):
            return None
        info = files.info(path)
        page = str(info.get("mimetype")).startswith("text/html")  # what HTTP has for a folder
        return None if page or info["type"] == "directory" else _info(uri, info)


def list_files(uri: str) -> Iterator[FileInfo]:
    itself = stat(uri)
    if itself:
        yield itself
        return
    with _opened(uri) as (files, path):
        prefix = path.rstrip("/") + "/"
        found = files.find(path, detail=True) if files.exists(path) else {}
        for name in sorted(name for name in found if name.startswith(prefix)):
            info = found[name] if found[name].get("size") is not None else files.info(name)
            yield _info(f"{uri.rstrip('/')}/{name.removeprefix(prefix)}", info)


def local_copy(uri: str, wait: Event | None = None) -> Path:
    info = stat(uri)
    if info is None:
        raise FileNotFoundError(f"{uri}: no such file")

    def fill(path: Path) -> None:
        with _opened(uri) as (files, remote):
            files.get_file(remote, str(path))

    return cache.local_copy(f"{uri} {info.etag}", Path(uri).name, info.size, fill, wait)


class RangedFile(AbstractBufferedFile):  # type: ignore[misc]
    """A remote file, also on S3, to read anywhere, each read one ranged request. Raises FileNotFoundError."""

    def __init__(self, uri: str) -> None:
        if (info := storage.stat(uri)) is None:
            raise FileNotFoundError(f"{uri}: no such file")
        super().__init__(None, uri, cache_type="none", size=info.size)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return storage.read_bytes(self.path, start, end - start)


def _info(uri: str, info: dict[str, object]) -> FileInfo:
    """Its etag is a digest of what the file system says of the content's version."""
    if not isinstance(size := info.get("size"), int):
        raise OSError(f"{uri}: the server does not say how large it is; download it to a folder")
    said = [f"{key} {_plain(info[key])}" for key in _VERSIONS if key in info]
    return FileInfo(uri, size, hashlib.sha256(" ".join(said).encode()).hexdigest()[:32])


def _plain(value: object) -> object:
    """Convert a time to seconds: some file systems list it so, and return it otherwise."""
    return value.timestamp() if isinstance(value, datetime) else value


@contextmanager
def _opened(uri: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """Open the file system of an address; its exceptions become one line that names the address."""
    try:
        yield url_to_fs(uri)
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: no such file") from None
    except OSError as error:
        if uri in str(error) or error.errno in (errno.ENOSPC, errno.EDQUOT):  # the cache's disk: it says what to do
            raise
        raise OSError(f"{uri}: cannot be read here ({error})") from None
    except ImportError as error:
        raise ValueError(f"{uri}: cannot be read here ({error})") from None
    except ValueError:
        raise
    except Exception as error:  # aiohttp's, google's and azure's own have no base in common
        raise ConnectionError(f"{uri}: {type(error).__name__}: {one_line(error, 200)}") from None
