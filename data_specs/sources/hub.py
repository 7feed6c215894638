"""Hugging Face `datasets` sets, from the hub or a folder: read through once when planned, kept as Parquet files.

So each row is fetched once, workers need no hub, and what a unit reads cannot change under it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from data_specs import storage
from data_specs.scratch import scratch_folder
from data_specs.text import one_line

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

PREFIX = "datasets:"
FILE_BYTES = 256 << 20
GROUP_BYTES = 16 << 20
BATCH_ROWS = 512
Row = dict[str, str | bytes | int | None]


class EncodedImage(TypedDict):
    """An image as `datasets` holds it undecoded: its bytes, or the file that they are in."""

    bytes: bytes | None
    path: str | None


@dataclass(frozen=True)
class DataSet:
    """A `datasets:NAME_OR_FOLDER` set and the columns wanted of it."""

    uri: str
    split: str
    subset: str | None
    value_key: str
    id_key: str
    class_key: str | None = None
    images: bool = False
    limit: int | None = None

    def copy_to(self, inputs_uri: str) -> str:
        """Copy the wanted columns (ids as `id`) into a folder under `inputs_uri` and return it; a whole one is kept.

        Images stay encoded as they are.

        Raises:
            ValueError: the set, its split or a column cannot be had.
        """
        code = hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:8]
        folder = storage.join(inputs_uri, f"datasets-{code}")
        if not storage.exists(f"{folder}.json"):
            data = self._load()
            num_files = _write_files(self._rows(data), folder)
            if names := list(getattr((data.features or {}).get(self.class_key), "names", None) or []):
                storage.write_text(f"{folder}/classes.json", json.dumps(names))
            storage.create(f"{folder}.json", json.dumps({"source": self.uri, "parts": num_files}).encode())
        return folder

    def _load(self) -> datasets.Dataset | datasets.IterableDataset:
        """Load the split, streamed where it was not saved by `save_to_disk`."""
        import datasets

        name = self.uri.removeprefix(PREFIX)
        try:
            path = self._folder()
            if path and any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
                saved = datasets.load_from_disk(str(path))
                return saved[self.split] if isinstance(saved, datasets.DatasetDict) else saved
            builder = datasets.load_dataset_builder(str(path or name), self.subset)
            for file in (file for files in (builder.config.data_files or {}).values() for file in files):
                if path and not _is_under(file, path):  # its README may name any
                    raise ValueError(f"it names the file {file!r}, which is outside of its folder")
            return builder.as_streaming_dataset(split=self.split)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            said = one_line(error, 200)
            remedy = "give a folder that is there, or a set and split that the hub has, with a network to reach it"
            raise ValueError(
                f"{self.uri}: cannot be opened as a data set ({type(error).__name__}: {said}); {remedy}"
            ) from None

    def _folder(self) -> Path | None:
        """Return the set's folder on this machine; None for a set of the hub."""
        name = self.uri.removeprefix(PREFIX)
        path = storage.local_folder(name) if storage.is_remote(name) else Path(name)
        return path if path.is_dir() else None

    def _rows(self, data: datasets.Dataset | datasets.IterableDataset) -> Iterator[Row]:
        """Rows as they will be stored: `id`, then the text, or the encoded image, and its class."""
        import datasets

        wanted = [self.value_key, *([self.class_key] if self.class_key else [])]
        if missing := [key for key in wanted if key not in (data.column_names or wanted)]:
            raise ValueError(f"{self.uri}: has no column {missing[0]!r}; it has {', '.join(data.column_names)}")
        if self.images:
            data = data.cast_column(self.value_key, datasets.Image(decode=False))
        number = 0
        folder = self._folder()
        for batch in data.with_format("arrow").iter(BATCH_ROWS):
            for row in batch.select([key for key in (*wanted, self.id_key) if key in batch.column_names]).to_pylist():
                if number == self.limit:
                    return
                if self.images:
                    row[self.value_key] = self._encoded(row[self.value_key], folder)
                found = row.get(self.id_key)
                row_id = f"{self.split}-{number:08d}" if found is None else str(found)
                yield {"id": row_id} | {key: row[key] for key in wanted}
                number += 1

    def _encoded(self, image: EncodedImage | None, folder: Path | None) -> bytes | None:
        """Return an image's file: its bytes, or those at its path.

        Raises:
            ValueError: the path leads out of the set's folder; a set may name any file of this machine.
        """
        if not image:
            return None
        path = image["path"]
        if image["bytes"] is not None or not path:
            return image["bytes"]
        if folder is None or not _is_under(path, folder):
            raise ValueError(f"{self.uri}: a row names the file {path!r}, which is outside of the set")
        return Path(path).read_bytes()


def _is_under(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder.resolve())


def _write_files(rows: Iterator[Row], folder: str) -> int:
    """Write part-00000.parquet and so on, each placed when it is whole; return their number."""
    import pyarrow.parquet as pq

    groups = _groups(rows)
    num_files = 0
    group = next(groups, None)
    while group is not None:
        with scratch_folder() as scratch:
            path = scratch / "part.parquet"
            with pq.ParquetWriter(path, group.schema) as writer:
                while group is not None and path.stat().st_size < FILE_BYTES:
                    writer.write_table(group.cast(writer.schema))
                    group = next(groups, None)
            storage.write(storage.join(folder, f"part-{num_files:05d}.parquet"), path)
        num_files += 1
    return num_files


def _groups(rows: Iterator[Row]) -> Iterator[pa.Table]:
    """Row groups of about GROUP_BYTES."""
    group = list[Row]()
    size = 0
    for row in rows:
        group.append(row)
        size += 64 + sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        if size >= GROUP_BYTES:
            yield _table(group)
            group = list[Row]()
            size = 0
    if group:
        yield _table(group)


def _table(group: list[Row]) -> pa.Table:
    import pyarrow as pa

    types = {str: pa.string(), bytes: pa.binary(), int: pa.int64()}
    column_types = {key: next((type(row[key]) for row in group if row[key] is not None), str) for key in group[0]}
    return pa.Table.from_pylist(
        group, schema=pa.schema([(key, types[type_name]) for key, type_name in column_types.items()])
    )
