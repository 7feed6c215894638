"""The table beside each shard: NNNNNN-<sha256[:8]>.parquet, a row per sample, for pyarrow, DuckDB, Polars, `datasets`.

`dnd query ROOT "licence = 'CC-BY-4.0' and num_words > 50"` asks all tables of a set; `tokenize.where` is the same
expression, in DuckDB's SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_specs import storage
from data_specs.records import Sample, SampleInfo, ShardEntry, StoredInfo, TableRow
from data_specs.shards import Shard, open_verified
from data_specs.text import one_line

if TYPE_CHECKING:
    import pyarrow as pa

_TEXT = ("source", "licence", "title", "url", "text")  # keys of a sample's json that are columns under their name
REPEATED = ["shard", "source", "licence", "script"]  # columns of few values: of others no dictionary is built in vain
PACKED = ("key", "document", "title", "url", "text")  # columns that are smaller packed


def table_uri(tar_uri: str) -> str:
    """Return the address of the table that belongs to a tar."""
    return tar_uri.removesuffix(".tar") + ".parquet"


def schema() -> pa.Schema:
    """Return the columns of a table; a box is that of the crop, in pixels of the page, zero where nothing was cut.

    `split`, the name of the set's folder, is no column of the files: it is added when they are read.
    """
    import pyarrow as pa

    types = {
        "key": pa.string(),
        "split": pa.string(),
        "unit": pa.int64(),
        "shard": pa.string(),
        "offset": pa.int64(),
        "document": pa.string(),
        "page": pa.int32(),
        **dict.fromkeys(("x0", "y0", "x1", "y1"), pa.int32()),
        "cls": pa.int32(),
        "num_words": pa.int32(),
        "num_clipped": pa.int32(),
        "ink": pa.float32(),
        "script": pa.string(),
        "hash": pa.uint64(),
        **dict.fromkeys(_TEXT, pa.string()),
    }
    return pa.schema(list(types.items()))


def _stored() -> pa.Schema:
    """Return the columns of the files."""
    return schema().remove(schema().get_field_index("split"))


class TableRows:
    """Rows of a shard that is being written: samples pass through `recorded`, then `to_parquet` makes the table."""

    def __init__(self) -> None:
        self.rows = list[dict[str, object]]()

    def recorded(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples as they come, each noted."""
        for sample in samples:
            row = sample.row
            if row is None:
                info = StoredInfo.parse(sample.fields.get("json", b"{}"), f"{sample.key}.json")
                row = row_of(info, "words" in info.model_fields_set)
            self.rows.append({**row, "key": sample.key, "cls": int(sample.fields.get("cls", b"0"))})
            yield sample

    def to_parquet(self, unit: int, shard: str, offsets: list[int]) -> bytes:
        """Return the table as a file; `offsets` [n] are those of each sample's first bytes in the tar."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        stored = _stored()
        columns: dict[str, Sequence[object]] = {name: [row.get(name) for row in self.rows] for name in stored.names}
        columns |= {"unit": [unit] * len(offsets), "shard": [shard] * len(offsets), "offset": offsets}
        packing = {name: "zstd" if name in PACKED else "none" for name in stored.names}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, stored), sink, compression=packing, use_dictionary=REPEATED)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def row_of(info: SampleInfo, has_words: bool = True) -> TableRow:
    """Return a sample's row as far as its json tells it; nothing is known of its picture.

    Args:
        has_words: whether the json lists the words; else those of the text are counted.
    """
    x0, y0, x1, y1 = info.box
    return {
        "document": info.id,
        "page": info.page,
        "x0": x0,
        "y0": y0,
        "x1": x1,
        "y1": y1,
        "num_words": len(info.words) if has_words else len(info.text.split()),
        "num_clipped": sum(info.clipped),
        "ink": 0.0,
        "script": "",
        "hash": 0,
        "source": info.source,
        "licence": info.licence,
        "title": info.title,
        "url": info.url,
        "text": info.text,
    }


def column(tar_uri: str, name: str, entry: ShardEntry) -> np.ndarray:
    """Read one column of the table beside a shard of a manifest, in the shard's order. Raises as `read_table`."""
    values: np.ndarray = read_table(tar_uri, entry.table_sha256, entry.nsamples).column(name).to_numpy()
    return values


# ---- asking --------------------------------------------------------------------------------------------------------
def query(set_uri: str, shards: Iterable[ShardEntry], where: str) -> pa.Table:
    """Return the rows of a set's tables that match an expression, in the order of the set.

    Raises:
        ValueError: the expression is not one, or names a column that there is not; or a table is missing.
    """
    import pyarrow as pa

    tables = (read_table(storage.join(set_uri, entry.url), entry.table_sha256, entry.nsamples) for entry in shards)
    return pa.concat_tables([schema().empty_table(), *(table.take(_matching(table, where)) for table in tables)])


def matching(shard: Shard, where: str) -> np.ndarray:
    """Return the numbers, int64 and rising, of a shard's samples that match; raises as `query`."""
    return _matching(table_of(shard), where)


def check_expression(where: str) -> None:
    """Raise ValueError for what is no expression over the columns of a table."""
    _matching(schema().empty_table(), where)


def table_of(shard: Shard) -> pa.Table:
    """Return the table beside an open shard; raises as `read_table`."""
    return read_table(shard.uri, shard.digests.table_sha256, len(shard))


def read_table(tar_uri: str, sha256: str | None, nsamples: int) -> pa.Table:
    """Return the table beside a shard, whole.

    Args:
        tar_uri: the shard.
        sha256: of the table's bytes; None where a manifest of before does not say it: then its rows are counted.
        nsamples: of the shard.

    Raises:
        ValueError: there is none, or it is not the one that was made.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri = table_uri(tar_uri)
    try:
        with open_verified(uri, sha256) if sha256 else storage.local_copy(uri).open("rb") as file:
            table = pq.read_table(file, schema=_stored())
    except FileNotFoundError:
        raise ValueError(f"{uri}: there is no table beside this shard; run `dnd verify`") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise ValueError(f"{uri}: not the table of a shard ({one_line(error, 200)})") from None
    if nsamples != len(table):
        raise ValueError(f"{uri}: has {len(table)} rows, its shard {nsamples} samples; run `dnd verify`")
    split = pa.repeat(uri.split("/")[-2], len(table))
    return table.add_column(schema().get_field_index("split"), "split", split)


def _matching(table: pa.Table, where: str) -> np.ndarray:
    try:
        import duckdb
    except ImportError:
        raise ValueError("expressions need DuckDB: pip install 'dnd-transformer[render]'") from None
    with duckdb.connect(config={"enable_external_access": False, "threads": 1}) as connection:  # reads no file
        connection.register("samples", table.append_column("row", [np.arange(len(table))]))
        try:
            text = f"SELECT row FROM samples WHERE ({where}\n) ORDER BY row"  # noqa: S608 (the user's own expression)
            found = connection.sql(text).fetchnumpy()["row"]
        except duckdb.Error as error:
            message = " ".join(str(error).partition("\n\nLINE")[0].split())
            raise ValueError(f"{where!r}: {message} (columns: {', '.join(schema().names)})") from None
    return np.asarray(found, np.int64)
