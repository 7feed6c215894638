"""The documents of a unit with their bytes: each file is first looked at, whether it is the one that was planned."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_specs import cache, storage
from data_specs.records import Document, FileInfo, Reason, SourceUnit
from data_specs.spec import ImageSource, Limits, Source, TextSource
from pipeline.sources.arxiv import read_papers
from pipeline.sources.document import Offered
from pipeline.sources.tables import Rows
from pipeline.sources.text import unpacked
from pipeline.splits import key_of

READ_AHEAD = 8 << 20  # bytes of neighbouring documents that are read at a time
GAP = 256 << 10  # bytes between documents that are read along rather than asked for anew


def read_unit(unit: SourceUnit, limits: Limits) -> Iterator[Offered]:
    """Every document of a unit, in its order; keys are unique in the unit, whatever the ids.

    Raises ValueError if a file is not the one that was planned, FileNotFoundError if it is gone.
    """
    for file in unit.files:
        if storage.stat(file.uri) != file:
            raise ValueError(f"{file.uri}: is not the file that was planned (its size or etag changed); plan anew")
    seen = Counter[str]()
    for offered in read_papers(unit, limits) if unit.tar else _read_listed(unit, limits):
        key = offered.key or key_of(offered.id)
        yield offered._replace(
            key=_unique(key, seen[key]), id=_printable(offered.id), origin=_printable(offered.origin)
        )
        seen[key] += 1


def _unique(key: str, times_seen: int) -> str:
    """A document whose key came before in the unit gets a hash of how often behind it."""
    return f"{key}-{hashlib.sha256(f'{key}/{times_seen}'.encode()).hexdigest()[:8]}" if times_seen else key


def _printable(text: str) -> str:
    """Text that UTF-8 can hold: names on a disk may be any bytes."""
    return text.encode("utf-8", "replace").decode()


def _read_listed(unit: SourceUnit, limits: Limits) -> Iterator[Offered]:
    documents = [Document(d.id, unit.files[d.file], d.start, d.length, d.cls) for d in unit.documents]
    for of_file in _by_file(documents):
        if of_file[0].file.uri.endswith(".parquet"):
            yield from _read_rows(of_file, unit.source, limits)
        else:
            yield from _read_bytes(of_file, limits)


def _by_file(documents: list[Document]) -> Iterator[list[Document]]:
    """Neighbours that stand in the same file."""
    start = 0
    for stop in range(1, len(documents) + 1):
        if stop == len(documents) or documents[stop].file != documents[start].file:
            yield documents[start:stop]
            start = stop


def _offered(document: Document) -> Offered:
    """A document without its bytes; its origin is its file's name, and the byte or row it begins at."""
    name = document.file.uri.rpartition("/")[2]
    origin = name if document.start is None else f"{name}#{document.start}"
    return Offered(document.id, "", origin, document.cls, reason=Reason.NO_CLASS if document.cls < 0 else None)


# ---- bytes ---------------------------------------------------------------------------------------------------------
def _read_bytes(documents: list[Document], limits: Limits) -> Iterator[Offered]:
    """Whole files, or ranges of one: neighbours are read together."""
    with _Bytes(documents[0].file) as source:
        for together in _spans(documents, limits.document_bytes):
            start = together[0].start or 0
            data = (
                source.read(start, _stop(together[-1]) - start) if _size(together[0]) <= limits.document_bytes else b""
            )
            for document in together:
                offered = _offered(document)
                if _size(document) > limits.document_bytes:
                    offered = offered._replace(reason=Reason.TOO_LARGE, detail=f"document_bytes: {_size(document)}")
                begin = (document.start or 0) - start
                yield offered if offered.reason else offered._replace(data=data[begin : begin + _size(document)])


def _size(document: Document) -> int:
    return document.file.size if document.length is None else document.length


def _stop(document: Document) -> int:
    return (document.start or 0) + _size(document)


def _spans(documents: list[Document], limit: int) -> Iterator[list[Document]]:
    """Documents whose bytes are read at once: near each other, READ_AHEAD in all; too large ones stand alone."""
    together: list[Document] = []
    for document in documents:
        start = document.start or 0
        near = bool(together) and _stop(together[-1]) <= start <= _stop(together[-1]) + GAP
        fits = near and _stop(document) - (together[0].start or 0) <= READ_AHEAD
        if together and (not fits or max(_size(document), _size(together[-1])) > limit):
            yield together
            together = []
        together.append(document)
    if together:
        yield together


class _Bytes:
    """Bytes of a file by range; a .gz is unpacked once on each node, into the cache."""

    def __init__(self, file: FileInfo) -> None:
        self.file = file
        self.unpacked: BinaryIO | None = _unpack(file).open("rb") if file.uri.endswith(".gz") else None

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        if self.unpacked:
            self.unpacked.close()

    def read(self, start: int, length: int) -> bytes:
        if self.unpacked is None:
            return storage.read_bytes(self.file.uri, start, length)
        self.unpacked.seek(start)
        return self.unpacked.read(length)


def _unpack(file: FileInfo) -> Path:
    def fill(path: Path) -> None:
        with unpacked(file.uri) as stream, path.open("wb") as target:
            shutil.copyfileobj(stream, target, 1 << 20)

    return cache.local_copy(f"unpacked {file.uri} {file.etag}", Path(file.uri).stem, None, fill)


# ---- rows ----------------------------------------------------------------------------------------------------------
def _read_rows(documents: list[Document], source: Source, limits: Limits) -> Iterator[Offered]:
    """Rows of a Parquet file: an image's bytes, or a passage as the JSON line that other passages are."""
    assert isinstance(source, ImageSource | TextSource)
    key = source.image_key if isinstance(source, ImageSource) else source.text_key
    rows = Rows(documents[0].file.uri, key)
    for document in documents:
        value, offered = rows.value(document.start or 0), _offered(document)
        if isinstance(value, dict):  # as `datasets` stores images
            value = value.get("bytes")
        if isinstance(source, TextSource):
            value = json.dumps({key: value}).encode()
        if not offered.reason and not isinstance(value, bytes):
            offered = offered._replace(reason=Reason.BROKEN_ROW, detail="holds no image")
        elif not offered.reason and len(value) > limits.document_bytes:
            offered = offered._replace(reason=Reason.TOO_LARGE, detail=f"document_bytes: {len(value)}")
        yield offered if offered.reason else offered._replace(data=value)
