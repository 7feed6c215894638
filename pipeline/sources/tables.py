"""Rows of Parquet files: listed by their ids alone, read a batch of rows at a time, from disk or by ranges over S3."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs import storage
from data_specs.records import Document, FileInfo
from pipeline.sources.document import relative

LISTED_ROWS = 1 << 15
READ_ROWS = 64


def table_documents(
    source_uri: str, file: FileInfo, id_key: str, value_key: str, classes: tuple[str, Mapping[str, int]] | None = None
) -> Iterator[Document]:
    """A document a row; without a column of ids the row's number is its id.

    classes: the column of the classes, and the number of each that is a name; numbers stand for themselves.
    """
    table, (class_key, numbers) = open_table(file.uri), classes or ("", {})
    found = table.schema_arrow.names
    if missing := [key for key in (value_key, class_key) if key and key not in found]:
        raise ValueError(f"{file.uri}: has no column {missing[0]!r}; it has {', '.join(found)}")
    start, name = 0, relative(source_uri, file.uri)
    for rows in _batches(table, [key for key in (id_key, class_key) if key in found]):
        ids = rows.column(id_key).to_pylist() if id_key in found else [None] * rows.num_rows
        labels = rows.column(class_key).to_pylist() if class_key else [0] * rows.num_rows
        for row, (row_id, label) in enumerate(zip(ids, labels), start):
            cls = label if isinstance(label, int) else numbers.get(str(label), -1)
            yield Document(f"{name}#{row}" if row_id is None else str(row_id), file, row, None, cls)
        start += rows.num_rows


def named_classes(file: FileInfo, class_key: str) -> set[str]:
    """The classes in a column of names; none where it holds numbers."""
    table, found = open_table(file.uri), set[str]()
    if class_key in table.schema_arrow.names and not pa.types.is_integer(table.schema_arrow.field(class_key).type):
        for rows in _batches(table, [class_key]):
            found |= {str(name) for name in rows.column(class_key).unique().to_pylist() if name is not None}
    return found


def _batches(table: pq.ParquetFile, columns: list[str]) -> Iterator[Any]:
    """Batches of the columns; where none is wanted, empty ones that know their number of rows."""
    if columns:
        yield from table.iter_batches(LISTED_ROWS, columns=columns)
        return
    for start in range(0, table.metadata.num_rows, LISTED_ROWS):
        yield pa.table({"_": pa.nulls(min(LISTED_ROWS, table.metadata.num_rows - start))})


def open_table(uri: str) -> pq.ParquetFile:
    """A Parquet file. Raises ValueError if it is none."""
    try:
        return pq.ParquetFile(_Ranged(uri) if storage.is_remote(uri) else uri)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: not a Parquet file ({error})") from None


class Rows:
    """Values of one column of one file, asked for by rising row number."""

    def __init__(self, uri: str, column: str) -> None:
        self.uri, self.column, self.table = uri, column, open_table(uri)
        self.group, self.start, self.values, self.batches = -1, 0, list[Any](), iter(())

    def value(self, row: int) -> Any:
        """The value in a row: a row of a later group begins there. Raises ValueError if the file has no such row."""
        group, first = self._group_of(row)
        if group != self.group or row < self.start:
            self.group, self.start, self.values = group, first, []
            self.batches = self.table.iter_batches(READ_ROWS, row_groups=[group], columns=[self.column])
        while row >= self.start + len(self.values):
            self.start += len(self.values)
            self.values = next(self.batches).column(0).to_pylist()
        return self.values[row - self.start]

    def _group_of(self, row: int) -> tuple[int, int]:
        first = 0
        for group in range(self.table.num_row_groups):
            size = self.table.metadata.row_group(group).num_rows
            if row < first + size:
                return group, first
            first += size
        raise ValueError(f"{self.uri}: has no row {row}; it is not the file that was planned")


class _Ranged(io.RawIOBase):
    """A remote file that can be read anywhere, each read one ranged request."""

    def __init__(self, uri: str) -> None:
        info = storage.stat(uri)
        if info is None:
            raise FileNotFoundError(f"{uri}: no such file")
        self.uri, self.size, self.position = uri, info.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self.size - self.position)
        buffer[:length] = storage.read_bytes(self.uri, self.position, length)
        self.position += length
        return length
