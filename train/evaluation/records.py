"""What OCR read, remembered in a JSON Lines file, so that a killed evaluation goes on where it was.

A record is {key, image (SHA-256 of shape and pixels), engine, text}; one is used again only where key, image and engine
agree."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from train.evaluation.ocr import OcrEngine

READ_AT_ONCE = 32


def read_resumable(items: Iterable[tuple[str, np.ndarray]], engine: OcrEngine, record_file: Path) -> list[dict]:
    """OCR of (key, uint8 image [H, W, 3]) pairs; only what the file lacks is read. Records in the order of `items`."""
    known = {_identity(record): record for record in _read_records(record_file)}
    records = []
    for batch in _batches(items, READ_AT_ONCE):
        wanted = [_record(key, image, engine.name) for key, image in batch]
        missing = [i for i, record in enumerate(wanted) if _identity(record) not in known]
        texts = engine.read([batch[i][1] for i in missing]) if missing else []
        new = [{**wanted[i], "text": text} for i, text in zip(missing, texts, strict=True)]
        append_records(record_file, new)
        known |= {_identity(record): record for record in new}
        records += [known[_identity(record)] for record in wanted]
    return records


def missing_records(
    items: Sequence[dict[str, Any]], chosen: Iterable[int], kind: str, engine: str, record_file: Path
) -> list[tuple[int, dict[str, Any]]]:
    """(index, record without its text) of the chosen items that the file lacks, under the key "kind/key"."""
    known = {_identity(record) for record in _read_records(record_file)}
    wanted = ((i, _record(f"{kind}/{items[i]['__key__']}", items[i]["image"], engine)) for i in chosen)
    return [(i, record) for i, record in wanted if _identity(record) not in known]


def append_records(record_file: Path, records: list[dict[str, Any]]) -> None:
    """Adds whole records to the file, on a new line where a killed run left half of one."""
    record_file.parent.mkdir(parents=True, exist_ok=True)
    with record_file.open("a+b") as log:
        size = log.seek(0, 2)
        log.seek(max(size - 1, 0))
        broken = b"\n" if size and log.read(1) != b"\n" else b""
        log.write(broken + b"".join(json.dumps(record).encode() + b"\n" for record in records))


def image_digest(image: np.ndarray) -> str:
    """SHA-256 (hex) of a uint8 image's shape and pixels."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _record(key: str, image: np.ndarray, engine: str) -> dict[str, Any]:
    return {"key": key, "image": image_digest(image), "engine": engine}


def _identity(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["key"], record["image"], record["engine"]


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file that a killed run may have left with half a last line."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"key", "image", "engine", "text"} <= record.keys():
            yield record


def _batches(items: Iterable[tuple[str, np.ndarray]], size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
