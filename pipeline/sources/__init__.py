"""Sources: documents listed by streaming, split by a hash of their id, and cut into units; see docs/sources.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from data_specs import storage
from data_specs.records import Document, PlannedDocument, SourceUnit
from data_specs.spec import (
    ArxivSource,
    DocstringSource,
    ImageSource,
    PdfSource,
    Render,
    Source,
    TextSource,
    TypesetSource,
)
from pipeline.sources.arxiv import cut_tars, prepare_arxiv
from pipeline.sources.docstrings import write_passages
from pipeline.sources.hub import PREFIX, write_tables
from pipeline.sources.images import class_names, class_numbers, image_documents
from pipeline.sources.pdfs import pdf_documents
from pipeline.sources.text import text_documents
from pipeline.sources.typeset import write_documents
from pipeline.splits import split_of

__all__ = ["class_names", "cut", "documents", "prepare"]


def prepare(source: Source, inputs_uri: str) -> Source:
    """Makes the files of a source that are made here and returns the source that reads them.

    Docstrings and typeset PDFs are written, `datasets` sets copied to Parquet, arXiv's metadata cut into months; URIs
    become absolute, since workers stand elsewhere.
    """
    if isinstance(source, DocstringSource):
        return TextSource(kind="text", uri=write_passages(source, inputs_uri))
    if isinstance(source, TypesetSource):
        return PdfSource(kind="pdf", uri=write_documents(source, inputs_uri))
    if isinstance(source, TextSource | ImageSource) and source.uri.startswith(PREFIX):
        id_key = {"id_key": "id"} if isinstance(source, TextSource) else {}
        return source.model_copy(update={"uri": write_tables(source, inputs_uri), **id_key})
    if isinstance(source, ArxivSource):
        source = prepare_arxiv(source, inputs_uri)
    return source.model_copy(update={"uri": storage.absolute(source.uri)})


def documents(source: Source, classes: dict[str, int] | None = None) -> Iterator[Document]:
    """The documents of a listed source in a fixed order; `classes` gives classes of images their numbers.

    Raises ValueError for a source that is empty or cannot be read.
    """
    number = 0
    for number, document in enumerate(_listing(source, classes), 1):
        yield document
        if number == source.max_documents:  # type: ignore[union-attr]
            break
    if number == 0:
        raise ValueError(f"{source.uri}: there is no document of kind {source.kind} here")  # type: ignore[union-attr]


def _listing(source: Source, classes: dict[str, int] | None) -> Iterator[Document]:
    if isinstance(source, TextSource):
        return text_documents(source)
    if isinstance(source, PdfSource):
        return pdf_documents(source)
    assert isinstance(source, ImageSource), f"a source of kind {source.kind} is not listed"
    return image_documents(source, class_numbers([source]) if classes is None else classes)


def cut(render: Render, sources: Sequence[Source]) -> Iterator[tuple[str, SourceUnit]]:
    """(split, unit numbered within it) for all sources; a unit has at most render.documents_per_unit documents."""
    numbers = {"train": count(), "val": count()}
    classes = class_numbers(sources)
    for source in sources:
        if isinstance(source, ArxivSource):
            units = cut_tars(source, render.documents_per_unit, render.val_share)
        else:
            units = _cut_listed(render, source, classes)
        for split, unit in units:
            yield split, unit.model_copy(update={"unit": next(numbers[split])})


def _cut_listed(render: Render, source: Source, classes: dict[str, int]) -> Iterator[tuple[str, SourceUnit]]:
    waiting: dict[str, list[Document]] = {"train": [], "val": []}
    for document in documents(source, classes):
        split = _split(source, document, render.val_share)
        waiting[split].append(document)
        if len(waiting[split]) == render.documents_per_unit:
            yield split, _unit(source, waiting[split])
            waiting[split] = []
    yield from ((split, _unit(source, rest)) for split, rest in waiting.items() if rest)


def _split(source: Source, document: Document, val_share: float) -> str:
    if isinstance(source, ImageSource) and source.split != "hash":
        return source.split
    return split_of(document.id, val_share)


def _unit(source: Source, of_unit: list[Document]) -> SourceUnit:
    """A unit, not numbered yet, of documents of a listed source.

    One of a packed file names it as its affinity: each node that works on such units unpacks it once.
    """
    files = list(dict.fromkeys(document.file for document in of_unit))
    numbers = {file.uri: number for number, file in enumerate(files)}
    return SourceUnit(
        unit=0,
        affinity=files[0].uri if files[0].uri.endswith(".gz") else None,
        source=source,
        files=tuple(files),
        documents=tuple(PlannedDocument(d.id, numbers[d.file.uri], d.start, d.length, d.cls) for d in of_unit),
    )
