"""Passages: lines of JSON Lines files, packed or not, rows of Parquet files, and `datasets` sets."""

from __future__ import annotations

import json
import re
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
ARRAY_BYTES = 1 << 26  # of a file that holds one JSON array
LINE_BYTES = 1 << 24  # what is held of a line while listing; a longer one is offered by its number
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*")
_BETWEEN = re.compile(r"\s*,?\s*")


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

    def row_bytes(self, value: Any) -> bytes | None:
        try:
            text = value.decode() if isinstance(value, bytes) else value
            return json.dumps({self.text_key: text}).encode()
        except (TypeError, ValueError):  # a value that JSON has no name for, or bytes that are no text
            return None

    def text(self, data: bytes) -> str:
        """Return the text of a line. Raises ValueError where it is no object with text under text_key."""
        try:
            row = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON ({error})"[:160]) from None
        if not isinstance(row, dict) or self.text_key not in row:
            raise ValueError(f"a JSON {type(row).__name__}, no object with the key {self.text_key}")
        text = row[self.text_key]
        if not isinstance(text, str):
            raise ValueError(f"{self.text_key} is {type(text).__name__}, not text")
        return text


def _list_lines(file: FileInfo, id_key: str, name: str) -> Iterator[Document]:
    """Lines that are not blank; one that cannot be parsed is offered by its number, to be rejected with a reason."""
    start = 0
    some = False
    with open_unpacked(file.uri) as stream:
        for number, (line, length) in enumerate(read_lines(stream), 1):
            if not some and _ARRAY.match(line) and without_packing(name).endswith(".json"):
                fits = length == len(line)
                yield from _list_array(line + stream.read(ARRAY_BYTES) if fits else b"", start, file, id_key, name)
                return
            if line.strip():
                some = True
                yield Document(_id_of(line, id_key, f"line-{number}"), Span(file, start, length))
            start += length


def read_lines(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield (the first LINE_BYTES of a line, its length in bytes), split at newline only."""
    while line := stream.readline(LINE_BYTES):
        length = len(line)
        piece = line
        while not piece.endswith(b"\n") and (piece := stream.readline(LINE_BYTES)):
            length += len(piece)
        yield line, length


def _id_of(data: bytes, id_key: str, otherwise: str) -> str:
    try:
        found = json.loads(data)[id_key]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    return otherwise if found is None else as_utf8(str(found)[:ID_CHARACTERS])


def _list_array(data: bytes, start: int, file: FileInfo, id_key: str, name: str) -> Iterator[Document]:
    """The elements of a JSON array that begins at `start`; one that is damaged or too large is a reject itself."""
    if not 0 < len(data) <= ARRAY_BYTES:
        detail = f"a JSON array of more than {ARRAY_BYTES} bytes: write an object a line (jq -c .[])"
        yield Document(name, Span(file), reason=Reason.TYPE_NOT_READ, detail=detail)
        return
    text = data.decode("latin-1")
    position = len(_ARRAY.match(data)[0])  # type: ignore[index]
    number = 0
    try:
        while not text.startswith("]", position):
            _, stop = json.JSONDecoder().raw_decode(text, position)
            number += 1
            element = Span(file, start + position, stop - position)
            yield Document(_id_of(data[position:stop], id_key, f"item-{number}"), element)
            position = _BETWEEN.match(text, stop).end()  # type: ignore[union-attr]
        if text[position + 1 :].strip():
            raise ValueError("something stands behind the array")
    except (ValueError, RecursionError):
        detail = f"a JSON array that is damaged behind byte {start + position}"
        yield Document(name, Span(file), reason=Reason.TYPE_NOT_READ, detail=detail)
