"""Sources: documents listed by streaming, split by a hash of their id, and cut into units."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_specs import storage
from data_specs.spec import DocstringSource, ImageSource, PdfSource, Render, Source, TextSource, TypesetSource
from data_specs.units import Unit
from pipeline.sources.docstrings import write_passages
from pipeline.sources.typeset import write_documents
from pipeline.splits import split_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Document(NamedTuple):
    """Where a document lies: a file, or `length` bytes of it from `start`; `cls` is its class."""

    id: str
    file: storage.FileInfo
    start: int | None = None
    length: int | None = None
    cls: int = 0


def prepare(source: Source, inputs_uri: str) -> Source:
    """Makes the files of a source that is made here (docstrings, typeset) and returns the source that reads them."""
    if isinstance(source, DocstringSource):
        return TextSource(kind="text", uri=write_passages(source, inputs_uri))
    if isinstance(source, TypesetSource):
        return PdfSource(kind="pdf", uri=write_documents(source, inputs_uri))
    return source


def documents(source: Source) -> Iterator[Document]:
    """The documents of a source in a fixed order. Raises ValueError for a source that is empty or cannot be read."""
    listing = {TextSource: _lines, PdfSource: _pdfs, ImageSource: _images}.get(type(source))
    if listing is None:
        raise ValueError(f"a source of kind {source.kind} cannot be read by this version; use text, pdf or images")
    number = 0
    for number, document in enumerate(listing(source), 1):  # type: ignore[operator]
        yield document
        if number == source.max_documents:  # type: ignore[union-attr]
            break
    if number == 0:
        raise ValueError(f"{source.uri}: there is no document of kind {source.kind} here")  # type: ignore[union-attr]


def cut(render: Render, sources: Sequence[Source]) -> Iterator[tuple[str, Unit]]:
    """(split, unit without its number) for all sources; a unit holds at most render.documents_per_unit documents."""
    for source in sources:
        waiting: dict[str, list[Document]] = {"train": [], "val": []}
        for document in documents(source):
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


def _unit(source: Source, of_unit: list[Document]) -> Unit:
    """Files with size and etag, then documents as [id, file number, start, length, class]."""
    files = list(dict.fromkeys(document.file for document in of_unit))
    numbers = {file.uri: number for number, file in enumerate(files)}
    return {
        "source": source.model_dump(mode="json"),
        "files": [list(file) for file in files],
        "documents": [[d.id, numbers[d.file.uri], d.start, d.length, d.cls] for d in of_unit],
    }


def _lines(source: TextSource) -> Iterator[Document]:
    """Lines of JSON Lines files; one that cannot be parsed is offered by its number, to be rejected with a reason."""
    for file in storage.list_files(source.uri):
        if file.uri.endswith((".jsonl", ".json")):
            yield from _lines_of(file, source.id_key)


def _lines_of(file: storage.FileInfo, id_key: str) -> Iterator[Document]:
    start = 0
    with storage.open_stream(file.uri) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield Document(_line_id(line, id_key, number), file, start, len(line))
            start += len(line)


def _line_id(line: bytes, id_key: str, number: int) -> str:
    try:
        return str(json.loads(line)[id_key])
    except (ValueError, KeyError, TypeError):
        return f"line-{number}"


def _pdfs(source: PdfSource) -> Iterator[Document]:
    folder = source.uri.rstrip("/") + "/"
    for file in storage.list_files(source.uri):
        if file.uri.lower().endswith(".pdf"):
            yield Document(file.uri.removeprefix(folder).rpartition(".")[0], file)


def _images(source: ImageSource) -> Iterator[Document]:
    classes = {name: number for number, name in enumerate(_classes(source))}
    folder = source.uri.rstrip("/") + "/"
    for file in storage.list_files(source.uri):
        name, _, rest = file.uri.removeprefix(folder).partition("/")
        if rest and file.uri.lower().endswith(IMAGE_SUFFIXES):
            yield Document(f"{name}/{rest}", file, cls=classes[name])


def _classes(source: ImageSource) -> list[str]:
    """Names of the classes: the folders under the source, sorted."""
    folder = source.uri.rstrip("/") + "/"
    parts = (file.uri.removeprefix(folder).partition("/") for file in storage.list_files(source.uri))
    return sorted({name for name, slash, _ in parts if slash})


def class_names(sources: Sequence[Source]) -> dict[int, str]:
    """Class number -> name, over all image sources; empty where there is none."""
    return {number: name for s in sources if isinstance(s, ImageSource) for number, name in enumerate(_classes(s))}
