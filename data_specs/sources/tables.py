"""Rows of Parquet files: listed by their ids alone, read a few rows at a time, from disk or by ranges over S3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from data_specs import storage
from data_specs.records import Document, FileInfo, Reason, Span
from data_specs.sources.names import ID_CHARACTERS, relative

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_specs.fsspec_files import RangedFile

LISTED_ROWS = 1 << 15
READ_ROWS = 64
MAX_CLASS = 1 << 31
READ_BYTES = 32 << 20  # of rows held at a time, as long as a row is no larger
LISTED_BYTES = 512 << 20  # of a row group's ids and classes
RATIO = 200  # bytes that one of the file may unpack to, where these are more than wanted


def list_rows(
    source_uri: str, file: FileInfo, id_key: str, value_key: str, classes: tuple[str, Mapping[str, int]] | None = None
) -> Iterator[Document]:
    """Yield a document a row; without a column of ids the row's number is its id.

    Args:
        source_uri: the source, whose folder is left out of the ids that are made here.
        file: the Parquet file.
        id_key: column of the ids.
        value_key: column of the documents.
        classes: the column of the classes, and the number of each that is a name; numbers stand for themselves.
    """
    class_key, numbers = classes or ("", {})
    name = relative(source_uri, file.uri)
    row = 0
    found = open_table(file.uri).schema_arrow.names
    if missing := [key for key in (value_key, class_key) if key and key not in found]:
        raise ValueError(f"{file.uri}: has no column {missing[0]!r}; it has {', '.join(found)}")
    for rows in _listed(file.uri, [key for key in (id_key, class_key) if key in found]):
        ids = rows.column(id_key) if id_key in found else [None] * rows.num_rows
        labels = rows.column(class_key) if class_key else [0] * rows.num_rows
        for row_id, label in zip(ids, labels):
            yield _row(Span(file, row), _python(row_id), _python(label), name, numbers)
            row += 1


def _row(span: Span, row_id: object, label: object, name: str, numbers: Mapping[str, int]) -> Document:
    document = Document(f"{name}#{span.start}" if row_id is None else text_of(row_id)[:ID_CHARACTERS], span)
    cls = int(label) if isinstance(label, int) else numbers.get(text_of(label), -1)
    if 0 <= cls < MAX_CLASS:
        return document._replace(cls=cls)
    return document._replace(reason=Reason.NO_CLASS, detail=repr(label)[:80])


def text_of(value: object) -> str:
    """Return a value of a row as text; bytes are UTF-8: some writers do not say that they are text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _python(value: pa.Scalar | int | None) -> object:
    """Return a scalar of pyarrow as a value of Python, and what stands for a missing column as it is."""
    return value if value is None or isinstance(value, int) else value.as_py()


def named_classes(file: FileInfo, class_key: str) -> set[str]:
    """Return the classes in a column of names; none where it holds numbers."""
    import pyarrow as pa

    schema = open_table(file.uri).schema_arrow
    found = set[str]()
    column_type = schema.field(class_key).type if class_key in schema.names else pa.int64()
    if not (pa.types.is_integer(column_type) or pa.types.is_boolean(column_type)):
        if pa.types.is_nested(column_type):
            raise ValueError(
                f"{file.uri}: column {class_key!r} holds {column_type}, and no numbers or names of classes"
            )
        for rows in _listed(file.uri, [class_key]):
            names = rows.column(class_key).unique().to_pylist()
            found |= {text for name in names if name is not None and (text := text_of(name))}
    return found


def _listed(uri: str, columns: list[str]) -> Iterator[pa.Table | pa.RecordBatch]:
    """Batches of the columns; where none is wanted, empty ones that know their number of rows."""
    import pyarrow as pa

    table = open_table(uri, columns)
    for group in range(table.num_row_groups):
        if not columns:
            yield pa.table({"_": pa.nulls(table.metadata.row_group(group).num_rows)})
        elif num_rows := _rows_at_once(table, group, columns, LISTED_BYTES, LISTED_ROWS):
            yield from table.iter_batches(num_rows, row_groups=[group], columns=columns)
        else:
            raise ValueError(f"{uri}: row group {group} unpacks to far more than it should; take the file away")


def open_table(uri: str, columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file; of `columns`, values that the file holds once are held once.

    Raises:
        ValueError: it is not a Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(_source(uri))
        groups = range(table.num_row_groups)
        chunks = [chunk for group in groups for chunk in _chunks(table, group, columns)]
        shared = {c.path_in_schema for c in chunks if c.has_dictionary_page and c.physical_type == "BYTE_ARRAY"}
        return (
            pq.ParquetFile(_source(uri), metadata=table.metadata, read_dictionary=sorted(shared)) if shared else table
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: not a Parquet file ({error})") from None


def _source(uri: str) -> str | RangedFile:
    """Return what pyarrow opens: a path, or a file of ranged requests."""
    if not storage.is_remote(uri):
        return uri
    from data_specs.fsspec_files import RangedFile

    return RangedFile(uri)


def _chunks(table: pq.ParquetFile, group: int, columns: Sequence[str]) -> list[pq.ColumnChunkMetaData]:
    """Return what the file says of the parts of some columns in a row group."""
    found = table.metadata.row_group(group)
    chunks = [found.column(number) for number in range(found.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]


def _rows_at_once(table: pq.ParquetFile, group: int, columns: Sequence[str], max_bytes: int, most: int) -> int:
    """Rows of a group that fit READ_BYTES, `most` at most; 0 where it unpacks to far more than it may."""
    chunks = _chunks(table, group, columns)
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    if unpacked > max(max_bytes, RATIO * sum(chunk.total_compressed_size for chunk in chunks)):
        return 0
    num_rows: int = table.metadata.row_group(group).num_rows
    return max(1, min(most, READ_BYTES * num_rows // max(int(unpacked), 1)))


def read_rows(
    documents: Sequence[Document], column: str, max_bytes: int
) -> Iterator[tuple[Document, pa.Scalar | None]]:
    """Yield each document with its value of a column, a pyarrow scalar; None where it is not read.

    None stands beside documents that have a reason already, and rows that stand in a row group which unpacks to more
    than `max_bytes` from a RATIO of its size in the file.
    """
    rows: _Rows | None = None
    for document in documents:
        uri = document.span.file.uri
        if rows is None or rows.uri != uri:
            rows = _Rows(uri, column, max_bytes)
        yield document, None if document.reason else rows.value(document.span.start or 0)


class _Rows:
    """Values of one column of one file, best asked for by rising row number."""

    def __init__(self, uri: str, column: str, max_bytes: int) -> None:
        self.uri = uri
        self.column = column
        self.max_bytes = max_bytes
        self.table = open_table(uri, [column])
        self.group = -1
        self.start = 0
        self.values: Sequence[pa.Scalar] = ()
        self.batches: Iterator[pa.RecordBatch] = iter(())

    def value(self, row: int) -> pa.Scalar | None:
        """Read the value in a row, None where its group is not read.

        Raises:
            ValueError: the file has no such row.
        """
        group, first = self._group_of(row)
        batch_rows = _rows_at_once(self.table, group, [self.column], self.max_bytes, READ_ROWS)
        if not batch_rows:
            return None
        if group != self.group or row < self.start:
            self.group = group
            self.start = first
            self.values = ()
            self.batches = self.table.iter_batches(batch_rows, row_groups=[group], columns=[self.column])
        while row >= self.start + len(self.values):
            self.start += len(self.values)
            self.values = next(self.batches).column(0)
        return self.values[row - self.start]

    def _group_of(self, row: int) -> tuple[int, int]:
        first = 0
        for group in range(self.table.num_row_groups):
            size = self.table.metadata.row_group(group).num_rows
            if row < first + size:
                return group, first
            first += size
        raise ValueError(f"{self.uri}: has no row {row}; it is not the file that was planned")
