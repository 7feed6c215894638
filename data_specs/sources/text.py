"""Passages: lines of JSON Lines files, packed or not, rows of Parquet files, and `datasets` sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import BinaryIO, ClassVar, Literal

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
VALUES_BYTES = 1 << 26  # of a file that holds one JSON array, or objects of several lines
LINE_BYTES = 1 << 24  # what is held of a line while listing; a longer one is offered by its number
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # what such files begin with, and those of UTF-32
_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?={)")
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
                documents = _list_lines(file, self.id_key, relative(self.uri, file.uri))
                if (first := next(documents, None)) is None:
                    not_taken.add(file.uri, "empty")
                else:
                    yield from chain([first], documents)
            else:
                not_taken.add(file.uri)

    def value_key(self) -> str:
        return self.text_key

    def row_bytes(self, value: object) -> bytes | None:
        try:
            text = value.decode() if isinstance(value, bytes) else value
            return json.dumps({self.text_key: text}).encode()
        except (TypeError, ValueError):  # a value that JSON has no name for, or bytes that are no text
            return None

    def text(self, data: bytes) -> str:
        """Return the text of a line.

        Raises:
            ValueError: it is no object with text under text_key.
        """
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
    """Lines that are not blank; one that cannot be parsed is offered by its number, to be rejected with a reason.

    A .json may hold one array, or objects that go over several lines.
    """
    if without_packing(name).endswith(".json"):
        with open_unpacked(file.uri) as stream:
            values = _values(stream)
        if values:
            yield from _list_values(values, file, id_key, name)
            return
    start = 0
    with open_unpacked(file.uri) as stream:
        for number, (line, length) in enumerate(read_lines(stream), 1):
            if number == 1 and line.startswith(_UTF_16):
                detail = "UTF-16 or UTF-32: write it in UTF-8 (iconv -t UTF-8)"
                yield Document(name, Span(file), reason=Reason.TYPE_NOT_READ, detail=detail)
                return
            if line.strip():
                yield Document(_id_of(line, id_key, f"line-{number}"), Span(file, start, length))
            start += length


def _values(stream: BinaryIO) -> bytes | None:
    """Return a file's content, up to a limit, if an array or an object of several lines begins it; else None."""
    head = line = stream.readline(LINE_BYTES)
    while line and not line.strip(b"\xef\xbb\xbf \t\r\n") and len(head) < LINE_BYTES:
        head += (line := stream.readline(LINE_BYTES))
    is_array = _ARRAY.match(head)
    goes_on = head.endswith(b"\n") and _OBJECT.match(head) and not _is_object(head)
    data = head + stream.read(VALUES_BYTES) if is_array or goes_on else b""
    return data if is_array or (goes_on and _is_object(data)) else None


def _is_object(data: bytes) -> bool:
    """Whether an object begins here, and ends."""
    try:
        json.JSONDecoder().raw_decode(data.decode("latin-1"), _OBJECT.match(data).end())  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return False
    return True


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


def _list_values(data: bytes, file: FileInfo, id_key: str, name: str) -> Iterator[Document]:
    """Yield the elements of a JSON array, or objects one behind the other; what is damaged or too large is a reject."""
    opened = _ARRAY.match(data)
    what = "a JSON array" if opened else "JSON objects over several lines"
    if len(data) > VALUES_BYTES:
        detail = f"{what} of more than {VALUES_BYTES} bytes: write an object a line (jq -c {'.[]' if opened else '.'})"
        yield Document(name, Span(file), reason=Reason.TYPE_NOT_READ, detail=detail)
        return
    text = data.decode("latin-1")
    position = (opened or _OBJECT.match(data)).end()  # type: ignore[union-attr]
    number = 0
    try:
        while not text.startswith("]", position) if opened else position < len(text):
            _, stop = json.JSONDecoder().raw_decode(text, position)
            number += 1
            element = Span(file, position, stop - position)
            yield Document(_id_of(data[position:stop], id_key, f"item-{number}"), element)
            position = _BETWEEN.match(text, stop).end()  # type: ignore[union-attr]
        if text[position + 1 :].strip():
            raise ValueError("something stands behind the array")
    except (ValueError, RecursionError):
        detail = f"{what}, damaged behind byte {position}"
        yield Document(name, Span(file), reason=Reason.TYPE_NOT_READ, detail=detail)
