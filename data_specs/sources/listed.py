"""Sources whose documents are listed file by file, split by a hash of their id, and cut into units."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import ClassVar

from pydantic import Field

from data_specs import storage
from data_specs.local_files import skipped_paths
from data_specs.records import Document, RawDocument, Reason, SourceUnit
from data_specs.source import Source
from data_specs.sources.names import as_utf8, is_parquet, packing
from data_specs.sources.reading import read_spans
from data_specs.sources.tables import read_rows

log = logging.getLogger(__name__)


class NotTaken:
    """Counts what a listing leaves aside, with an example of each type, for one warning."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, name: str, what: str | None = None) -> None:
        """Count one file or member; `what` names its type, by default its suffix."""
        base = name.rpartition("/")[2]
        what = what or (f".{base.rpartition('.')[2]}" if "." in base[1:] else "without a suffix")
        self.counts[what] = self.counts.get(what, 0) + 1
        self.examples.setdefault(what, as_utf8(name))

    def warn(self, uri: str, kind: str) -> None:
        """Log one line for the source, if anything was left aside."""
        if self.counts:
            types = sorted(self.counts, key=lambda what: (-self.counts[what], what))
            named = ", ".join(f"{self.counts[t]} {t} (for instance {self.examples[t]!r})" for t in types[:5])
            more = f", and {len(types) - 5} other types" if types[5:] else ""
            log.warning("%s: not taken by a source of kind %s: %s%s", uri, kind, named, more)


class ListedSource(Source):
    """A source that lists its documents: a folder, a file, or files under an s3:// prefix."""

    places: ClassVar[tuple[str, ...]] = ("uri",)

    uri: str = Field(description="folder or file, by path or URI")
    licence: str | None = Field(None, description="licence of all documents, where it is known")
    max_documents: int | None = Field(None, ge=1, description="the first so many of the listing")

    def listing(self, classes: Mapping[str, int], not_taken: NotTaken) -> Iterator[Document]:
        """List the documents in a fixed order, those that cannot be used with a reason; count the rest."""
        raise NotImplementedError

    def prepare(self, inputs_uri: str) -> Source:
        return self.model_copy(update={"uri": storage.absolute(self.uri, is_source=True)})

    @property
    def address(self) -> str:
        return self.uri

    def probe_uri(self) -> str | None:
        return next((file.uri for file in storage.list_files(self.uri) if file.size), None)

    def documents(self, classes: Mapping[str, int]) -> Iterator[Document]:
        """Yield the documents up to max_documents.

        Raises:
            ValueError: a source that is empty or cannot be read.
        """
        not_taken = NotTaken()
        number = 0
        for number, document in enumerate(self.listing(classes, not_taken), 1):
            yield document._replace(id=as_utf8(document.id))
            if number == self.max_documents:
                break
        for path, what in () if storage.is_remote(self.uri) else skipped_paths(self.uri):
            not_taken.add(path, what)
        not_taken.warn(self.uri, self.kind)
        if number == 0:
            raise ValueError(f"{self.uri}: there is no document of kind {self.kind} here")

    def units(
        self, documents_per_unit: int, val_share: float, classes: Mapping[str, int]
    ) -> Iterator[tuple[str, SourceUnit]]:
        waiting: dict[str, list[Document]] = {"train": [], "val": []}
        for document in self.documents(classes):
            split = self.split_of(document, val_share)
            waiting[split].append(document)
            if len(waiting[split]) == documents_per_unit:
                yield split, self._unit(waiting[split])
                waiting[split] = []
        yield from ((split, self._unit(rest)) for split, rest in waiting.items() if rest)

    def _unit(self, documents: list[Document]) -> SourceUnit:
        """Make a unit; a packed file is its affinity, so that each node that works on such units unpacks it once."""
        first = documents[0].span.file.uri
        return SourceUnit.of(self, documents, first if packing(first) else None)

    def read(self, unit: SourceUnit, max_bytes: int) -> Iterator[RawDocument]:
        for is_table, documents in groupby(unit.listed(), lambda document: is_parquet(document.span.file.uri)):
            yield from (self._read_rows if is_table else self._read_files)(list(documents), max_bytes)

    def value_key(self) -> str:
        """Return the column of a table that holds the documents."""
        raise NotImplementedError

    def row_bytes(self, value: object) -> bytes | None:
        """Return a document's bytes from a row's value, None where it holds none."""
        raise NotImplementedError

    def _read_files(self, documents: list[Document], max_bytes: int) -> Iterator[RawDocument]:
        spans = [s for d in documents if d.reason is None for s in (d.span, d.caption) if s]
        contents = read_spans(spans, max_bytes)
        for document in documents:
            raw = self._raw(document)
            if raw.reason is None:
                data = next(contents)
                caption = next(contents) if document.caption else b""
                raw = self._with_data(raw, data, caption, max_bytes)
            yield raw

    def _read_rows(self, documents: list[Document], max_bytes: int) -> Iterator[RawDocument]:
        for document, value in read_rows(documents, self.value_key(), max_bytes):
            raw = self._raw(document)
            if raw.reason or value is None:
                yield raw if raw.reason else too_large(raw, max_bytes)
                continue
            data = self.row_bytes(value.as_py())
            no_data = raw._replace(reason=Reason.BROKEN_ROW, detail=f"no {self.document_kind} in {self.value_key()}")
            yield no_data if data is None else self._with_data(raw, data, b"", max_bytes)

    def _raw(self, document: Document) -> RawDocument:
        """Return a document without its bytes; its origin is its file's name, and the byte or row it begins at."""
        file, start, _ = document.span
        name = file.uri.rpartition("/")[2]
        info = {"licence": self.licence} if self.licence else {}
        return RawDocument(
            document.id,
            "",
            as_utf8(name if start is None else f"{name}#{start}"),
            document.cls,
            reason=document.reason,
            detail=document.detail,
            info=info,
        )

    def _with_data(self, raw: RawDocument, data: bytes | None, caption: bytes | None, max_bytes: int) -> RawDocument:
        if data is None or caption is None or len(data) > max_bytes:
            return too_large(raw, max_bytes)
        text = {"text": " ".join(caption.decode("utf-8", "replace").split())} if caption else {}
        return raw._replace(data=data, info=raw.info | text)


def too_large(raw: RawDocument, max_bytes: int) -> RawDocument:
    """Return a document as one that is rejected for its size."""
    return raw._replace(reason=Reason.TOO_LARGE, detail=f"more than document_bytes, {max_bytes}")
