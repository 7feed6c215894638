"""Hugging Face `datasets` sets, from the hub or a folder: read through once when planned, kept as Parquet files.

So each row is fetched once, workers need no hub, and what a unit reads cannot change under it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs import storage
from data_specs.scratch import scratch_folder
from data_specs.spec import ImageSource, TextSource

PREFIX = "datasets:"
PART_BYTES = 256 << 20
GROUP_BYTES = 16 << 20
BATCH_ROWS = 512
Rows = list[dict[str, Any]]


def write_tables(source: TextSource | ImageSource, inputs_uri: str) -> str:
    """Copies the wanted columns (and `id`) into a folder under `inputs_uri` and returns it; a whole one is kept.

    Images stay encoded as they are. Raises ValueError where the set, its split or a column cannot be had.
    """
    code = hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:8]
    folder = storage.join(inputs_uri, f"datasets-{code}")
    if not storage.exists(f"{folder}.json"):
        data = _load(source)
        parts = _write_parts(_rows(data, source), folder)
        if names := _class_names(data, source):
            storage.write_text(f"{folder}/classes.json", json.dumps(names))
        storage.create_if_absent(f"{folder}.json", json.dumps({"source": source.uri, "parts": parts}).encode())
    return folder


def _load(source: TextSource | ImageSource) -> Any:
    """The split of a set, streamed where it is not one saved by `save_to_disk`."""
    import datasets

    name, split = source.uri.removeprefix(PREFIX), source.partition or "train"
    subset = source.subset if isinstance(source, TextSource) else None
    try:
        path = storage.local_folder(name) if storage.is_remote(name) else Path(name)
        if any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(path))
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(str(path) if path.is_dir() else name, subset, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        remedy = "give a folder that is there, or a set and split that the hub has, with a network to reach it"
        raise ValueError(
            f"{source.uri}: cannot be opened as a data set ({type(error).__name__}: {said}); {remedy}"
        ) from None


def _class_names(data: Any, source: TextSource | ImageSource) -> list[str]:
    key = source.class_key if isinstance(source, ImageSource) else ""
    return list(getattr((data.features or {}).get(key), "names", None) or [])


def _rows(data: Any, source: TextSource | ImageSource) -> Iterator[dict[str, Any]]:
    """Rows as they will be stored: `id`, then the text, or the encoded image and its class."""
    import datasets

    image = isinstance(source, ImageSource)
    wanted = [source.image_key, source.class_key] if isinstance(source, ImageSource) else [source.text_key]
    id_key = "id" if isinstance(source, ImageSource) else source.id_key
    if missing := [key for key in wanted if key not in (data.column_names or wanted)]:
        raise ValueError(f"{source.uri}: has no column {missing[0]!r}; it has {', '.join(data.column_names)}")
    if image:
        data = data.cast_column(wanted[0], datasets.Image(decode=False))
    number, split = 0, source.partition or "train"
    for batch in data.with_format("arrow").iter(BATCH_ROWS):
        for row in batch.select([key for key in (*wanted, id_key) if key in batch.column_names]).to_pylist():
            if number == source.max_documents:
                return
            found = row.get(id_key)
            value = _encoded(row[wanted[0]]) if image else row[wanted[0]]
            yield {"id": f"{split}-{number:08d}" if found is None else str(found), wanted[0]: value} | {
                key: row[key] for key in wanted[1:]
            }
            number += 1


def _encoded(image: dict[str, Any] | None) -> bytes | None:
    """An image's file: its bytes, or those at its path."""
    content: bytes | None = image["bytes"] if image else None
    return Path(image["path"]).read_bytes() if image and content is None and image["path"] else content


def _write_parts(rows: Iterator[dict[str, Any]], folder: str) -> int:
    """Writes part-00000.parquet and so on, each placed when it is whole; returns their number."""
    groups, part = _groups(rows), 0
    group = next(groups, None)
    while group is not None:
        with scratch_folder() as scratch:
            path = scratch / "part.parquet"
            with pq.ParquetWriter(path, group.schema) as writer:
                while group is not None and path.stat().st_size < PART_BYTES:
                    writer.write_table(group.cast(writer.schema))
                    group = next(groups, None)
            storage.write_file(path, storage.join(folder, f"part-{part:05d}.parquet"))
        part += 1
    return part


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    """Row groups of about GROUP_BYTES."""
    group, size = Rows(), 0
    for row in rows:
        group.append(row)
        size += 64 + sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        if size >= GROUP_BYTES:
            yield _table(group)
            group, size = Rows(), 0
    if group:
        yield _table(group)


def _table(group: Rows) -> pa.Table:
    types = {str: pa.string(), bytes: pa.binary(), int: pa.int64()}
    kinds = {key: next((type(row[key]) for row in group if row[key] is not None), str) for key in group[0]}
    return pa.Table.from_pylist(group, schema=pa.schema([(key, types[kind]) for key, kind in kinds.items()]))
