"""Passages: lines of JSON Lines files, packed or not, and rows of Parquet files."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from data_specs import storage
from data_specs.records import Document, FileInfo
from data_specs.spec import TextSource
from pipeline.sources.tables import table_documents

LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
LINE_BYTES = 1 << 24  # what is held of a line while listing; a longer one is offered by its number


def text_documents(source: TextSource) -> Iterator[Document]:
    """Every line and row of the files under a folder, in order of name; other files are left alone."""
    for file in storage.list_files(source.uri):
        if file.uri.endswith(".parquet"):
            yield from table_documents(source.uri, file, source.id_key, source.text_key)
        elif file.uri.endswith(LINES):
            yield from _lines_of(file, source.id_key)


def _lines_of(file: FileInfo, id_key: str) -> Iterator[Document]:
    """Lines that are not blank; one that cannot be parsed is offered by its number, to be rejected with a reason."""
    start = 0
    with unpacked(file.uri) as stream:
        for number, (line, length) in enumerate(_lines(stream), 1):
            if line.strip():
                yield Document(_line_id(line, id_key, number), file, start, length)
            start += length


def _lines(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(what is held of a line, its length in bytes), split at newline only."""
    while line := stream.readline(LINE_BYTES):
        length, piece = len(line), line
        while not piece.endswith(b"\n") and (piece := stream.readline(LINE_BYTES)):
            length += len(piece)
        yield line, length


def _line_id(line: bytes, id_key: str, number: int) -> str:
    try:
        found = json.loads(line)[id_key]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return f"line-{number}" if found is None else str(found)


@contextmanager
def unpacked(uri: str) -> Iterator[BinaryIO]:
    """A file's bytes from start to end, those of a .gz unpacked. Raises ValueError where a .gz is damaged."""
    with storage.open_stream(uri) as stream:
        if not uri.endswith(".gz"):
            yield stream
            return
        try:
            with gzip.open(stream) as lines:
                yield cast(BinaryIO, lines)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{uri}: damaged ({error}); fetch it again or take it away") from None
