"""Packed files (.gz, .bz2, .xz, .zst): read as a stream when listed, unpacked once on each node when read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from typing_extensions import Buffer

from data_specs import cache, storage
from data_specs.records import FileInfo
from data_specs.sources.names import packing

BLOCK = 1 << 20
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def open_unpacked(uri: str) -> Iterator[BinaryIO]:
    """Open a file's bytes from start to end, unpacked.

    Raises:
        ValueError: a packed file is damaged, or unpacks to more than the cache may hold.
    """
    with storage.open_stream(uri) as stream:
        if (how := packing(uri)) is None:
            yield stream
            return
        try:
            with _unpacking(stream, how) as unpacked:
                yield cast(BinaryIO, io.BufferedReader(_Bounded(unpacked, uri), BLOCK))
        except _DAMAGED as error:
            raise ValueError(f"{uri}: damaged ({error}); fetch it again or take it away") from None


def _unpacking(stream: BinaryIO, how: str) -> BinaryIO:
    if how == "zst":
        import pyarrow as pa

        return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"))
    opened = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[how](stream)  # type: ignore[operator]
    return cast(BinaryIO, opened)


class _Bounded(io.RawIOBase):
    """What is unpacked, up to the size that the cache may have: a unit's node could not hold more."""

    def __init__(self, stream: BinaryIO, uri: str) -> None:
        self.stream = stream
        self.uri = uri
        self.limit = cache.limit_bytes()
        self.position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        try:
            data = self.stream.read(len(view))
        except OSError as error:
            if packing(self.uri) in ("bz2", "zst") and error.errno is None:  # their way of saying so
                raise EOFError(str(error)) from None
            raise
        self.position += len(data)
        if self.position > self.limit:
            raise ValueError(
                f"{self.uri}: unpacks to more than the cache may hold, {self.limit} bytes: unpack it, or raise "
                "DND_CACHE_BYTES"
            )
        view[: len(data)] = data
        return len(data)


def unpacked_copy(file: FileInfo) -> Path:
    """Return the unpacked file in this node's cache, made by the first process that asks for it."""

    def fill(path: Path) -> None:
        with open_unpacked(file.uri) as stream, path.open("wb") as target:
            while block := stream.read(BLOCK):
                target.write(block)

    return cache.local_copy(f"unpacked {file.uri} {file.etag}", Path(file.uri).stem, None, fill)
