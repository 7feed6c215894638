"""Passages: lines of JSON Lines files, packed or not, rows of Parquet files, and `datasets` sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, ClassVar, Literal

from pydantic import Field

from data_specs import storage
from data_specs.records import Document, FileInfo, Reason, Span
from data_specs.source import Source
from data_specs.sources.hub import PREFIX, DataSet
from data_specs.sources.listed import ListedSource, NotTaken
from data_specs.sources.names import ID_CHARACTERS, as_utf8, is_parquet, relative, without_packing
from data_specs.sources.packed import open_unpacked
from data_specs.sources.tables import list_rows

LINES = (".jsonl", ".ndjson", ".json")
LINE_BYTES = 1 << 24  # what is held of a line while listing; a longer one is offered by its number


class TextSource(ListedSource):
    """Passages: JSON Lines (.jsonl, .ndjson, packed or not), Parquet, or `datasets:NAME_OR_FOLDER`."""

    document_kind: ClassVar[Literal["text"]] = "text"

    kind: Literal["text"] = Field("text", description="what sort of source it is")
    format: Literal["plain", "markdown", "html"] = Field("plain", description="what the passages are written in")
    text_key: str = Field("text", description="key or column of the text")
    id_key: str = Field("id", description="key or column of the ids; without it, documents are numbered")
    subset: str | None = Field(None, description="configuration of a `datasets` data set")
    partition: str = Field("train", description="split of a `datasets` data set")

    @property
    def text_format(self) -> Literal["plain", "markdown", "html"]:
        return self.format

    def prepare(self, inputs_uri: str) -> Source:
        if not self.uri.startswith(PREFIX):
            return super().prepare(inputs_uri)
        data = DataSet(self.uri, self.partition, self.subset, self.text_key, self.id_key, limit=self.max_documents)
        return self.model_copy(update={"uri": storage.absolute(data.copy_to(inputs_uri)), "id_key": "id"})

    def listing(self, classes: Mapping[str, int], not_taken: NotTaken) -> Iterator[Document]:
        for file in storage.list_files(self.uri):
            if is_parquet(file.uri):
                yield from list_rows(self.uri, file, self.id_key, self.text_key)
            elif without_packing(file.uri).endswith(LINES):
                yield from _list_lines(file, self.id_key, relative(self.uri, file.uri))
            else:
                not_taken.add(file.uri)

    def value_key(self) -> str:
        return self.text_key

    def row_bytes(self, value: Any) -> bytes:
        return json.dumps({self.text_key: value}).encode()

    def text(self, data: bytes) -> str:
        """Return the text of a line. Raises ValueError where it is no object with text under text_key."""
        try:
            text = json.loads(data)[self.text_key]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__} {error}"[:160]) from None
        if not isinstance(text, str):
            raise ValueError(f"{self.text_key} is {type(text).__name__}, not text")
        return text


def _list_lines(file: FileInfo, id_key: str, name: str) -> Iterator[Document]:
    """Lines that are not blank; one that cannot be parsed is offered by its number, to be rejected with a reason."""
    start, some = 0, False
    with open_unpacked(file.uri) as stream:
        for number, (line, length) in enumerate(read_lines(stream), 1):
            if not some and line.lstrip().startswith(b"[") and without_packing(name).endswith(".json"):
                detail = "a JSON array: write an object a line (jq -c .[])"
                yield Document(name, Span(file), reason=Reason.TYPE_NOT_READ, detail=detail)
                return
            if line.strip():
                some = True
                yield Document(_line_id(line, id_key, number), Span(file, start, length))
            start += length


def read_lines(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield (the first LINE_BYTES of a line, its length in bytes), split at newline only."""
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
    return f"line-{number}" if found is None else as_utf8(str(found)[:ID_CHARACTERS])
