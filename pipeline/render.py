"""Rendering a unit: documents are read, rendered in a killable child, filtered, and become samples with their json."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator
from importlib.metadata import version

import PIL
import pypdfium2

from data_specs.mupdf import pymupdf
from data_specs.records import (
    Dropped,
    InputRead,
    Outcome,
    RawDocument,
    Reason,
    Sample,
    SampleInfo,
    SourceUnit,
)
from data_specs.sections import Filters
from data_specs.source import Source
from data_specs.sources.reading import read_unit
from data_specs.spec import Spec
from data_specs.table import row_of
from pipeline.filters import KeptHashes, Observation, ink, perceptual_hash, script_of, taken_by
from pipeline.isolate import Answer, Arguments, Child
from pipeline.png import ENCODER, encode_photo, encode_png
from pipeline.renderers import NoPicture, Picture, UnreadableError
from pipeline.renderers.images import render_image
from pipeline.renderers.pages import OPENING, Ended, render_pdf
from pipeline.renderers.text import render_text

RETRY_FACTOR = 4.0
TRIES = 3  # of a document that a limit or crash has ended
FUNCTION = "pipeline.render:render_document"  # what the children run
Rendered = list[Sample | Dropped]  # what it returns


def versions() -> dict[str, str]:
    """Return the versions that decide the bytes of image shards."""
    return {
        "pymupdf": pymupdf.__version__,
        "pypdfium2": str(pypdfium2.version.PYPDFIUM_INFO),
        "pillow": PIL.__version__,
        "fonts": version("pymupdf-fonts"),
        "markdown": version("markdown-it-py"),
        "png": ENCODER,
    }


class Renderer:
    """Renders units of a spec; holds the child process that does the work, and one for suspects."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.child = Child[Rendered](FUNCTION, spec.render.limits, spec)
        self.retry_child = Child[Rendered](FUNCTION, spec.render.limits, spec)

    def close(self) -> None:
        """End the children."""
        self.child.close()
        self.retry_child.close()

    def render(self, unit: SourceUnit) -> Iterator[Outcome]:
        """Yield samples and what was dropped, in the order of the unit's documents; then what was read."""
        documents = deque[RawDocument]()
        read = hashlib.sha256()
        num_bytes = 0
        kept = KeptHashes()

        def calls() -> Iterator[Arguments | Answer[Rendered]]:
            nonlocal num_bytes
            for document in read_unit(unit, self.spec.render.limits.document_bytes):
                read.update(document.data)
                num_bytes += len(document.data)
                documents.append(document)
                refused = document.reason and Answer[Rendered](None, document.reason, document.detail)
                yield refused or (unit.source, document, {})

        for first_answer in self.child.map(calls()):
            document = documents.popleft()
            answer = self._retried(unit.source, document, first_answer)
            if answer.reason:
                yield Dropped(document.key, document.origin, answer.reason, answer.detail)
            else:
                yield from _without_duplicates(answer.value or [], self.spec.render.filters, kept, document.origin)
        yield InputRead(bytes=num_bytes, sha256=read.hexdigest())

    def _retried(self, source: Source, document: RawDocument, answer: Answer[Rendered]) -> Answer[Rendered]:
        """After a limit or crash: once more, alone in a fresh child; then without the engine that a page ends."""
        ended = defaultdict[int, list[tuple[Reason, str]]](list)
        for _ in range(TRIES if source.document_kind == "pdf" else 1):
            if not answer.environmental:
                break
            self.retry_child.close()
            answer = self.retry_child.call(source, document, dict(ended), factor=RETRY_FACTOR)
            self.retry_child.close()
            if answer.reason and answer.environmental:
                ended[OPENING if answer.step is None else answer.step].append((answer.reason, answer.detail))
        return answer


def _without_duplicates(made: Rendered, filters: Filters, kept: KeptHashes, origin: str) -> Iterator[Sample | Dropped]:
    """Yield what was made of a document, without samples that are near duplicates of what was kept."""
    for one in made:
        if isinstance(one, Sample) and one.row and filters.near_duplicates is not None:
            if taken := taken_by(filters, Observation(nearest=kept.nearest(one.row["hash"]))):
                yield Dropped(one.key, origin, *taken)
                continue
            kept.add(one.row["hash"])
        yield one


def render_document(spec: Spec, source: Source, document: RawDocument, ended: Ended) -> Rendered:
    """Render a document in the child, and return what became of each picture of it.

    `ended` is as `render_pdf` takes it.

    Raises:
        UnreadableError: nothing of the document can be used.
    """
    made = [_finished(one, spec, source, document) for one in _render_kind(spec, source, document, ended)]
    rejected = [one for one in made if isinstance(one, Dropped) and one.reason.kind == "rejected"]
    if made and len(rejected) == len(made):
        raise UnreadableError(rejected[0].reason, rejected[0].detail)
    return made


def _finished(one: Picture | NoPicture, spec: Spec, source: Source, document: RawDocument) -> Sample | Dropped:
    """Return a picture as a sample with its files and its row of the table, if the filters keep it."""
    key = document.key + one.suffix
    if isinstance(one, NoPicture):
        return Dropped(key, document.origin, one.reason, one.detail)
    share = ink(one.image)
    if taken := taken_by(spec.render.filters, Observation(ink=share)):
        return Dropped(key, document.origin, *taken)
    known = {"id": document.id, "source": document.origin} | document.info
    texts = {name: str(value or "").encode("utf-8", "replace").decode() for name, value in known.items()}
    info = SampleInfo.model_validate({**one.about, **texts})
    png = encode_photo(one.image) if source.document_kind == "image" else encode_png(one.image)
    fields = {"png": png, "cls": b"%d" % document.cls, "json": info.to_json()}
    row = row_of(info)
    row["ink"] = share
    row["script"] = script_of(info.text) or ""
    row["hash"] = perceptual_hash(one.image)
    return Sample(key, fields, row)


def _render_kind(spec: Spec, source: Source, document: RawDocument, ended: Ended) -> Iterator[Picture | NoPicture]:
    render = spec.render
    size = spec.shape.image_size
    if source.document_kind == "pdf":
        return render_pdf(document.data, document.id, render, spec.seed, size, ended)
    if source.document_kind == "image":
        return render_image(document.data, spec.stored_size, render.limits, render.store == "whole")
    try:
        text = source.text(document.data)
    except ValueError as error:
        raise UnreadableError(Reason.BROKEN_ROW, str(error)) from None
    script = (script_of(text) or "") if render.filters.scripts else None
    if taken := taken_by(render.filters, Observation(script=script)):
        return iter([NoPicture("", *taken)])
    style = render.text
    canvas = render.crop_size or size
    return render_text(text, document.id, style, spec.seed, canvas, size, source.text_format)
