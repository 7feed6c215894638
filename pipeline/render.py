"""Rendering a unit: documents are read, rendered in a killable child, filtered, and become samples with their json."""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import PIL
import pymupdf
import pypdfium2
from PIL import Image

from data_specs.records import Dropped, InputRead, Outcome, RawDocument, Reason, Sample, SampleFacts, SourceUnit
from data_specs.source import Source
from data_specs.sources.reading import read_unit
from data_specs.spec import Spec
from pipeline.filters import Duplicates, ink, perceptual_hash, script_of
from pipeline.isolate import Answer, Child
from pipeline.png import ENCODER, encode_png
from pipeline.renderers import Lost, Unreadable
from pipeline.renderers.images import render_image
from pipeline.renderers.pages import render_pdf
from pipeline.renderers.text import render_text

PHOTO_LEVEL = 1  # of Pillow's PNGs of photographs; higher levels take three times the time for a tenth of the bytes
RETRY_FACTOR = 4.0
FUNCTION = "pipeline.render:render_document"  # what the children run


class Rendered(NamedTuple):
    """What the child says of one picture: its files and what the table says of it; or a reason."""

    suffix: str
    png: bytes = b""
    json: bytes = b""
    facts: SampleFacts = SampleFacts()
    reason: Reason | None = None
    detail: str = ""


def versions() -> dict[str, str]:
    """Versions that decide the bytes of image shards."""
    return {
        "pymupdf": pymupdf.__version__,
        "pypdfium2": str(pypdfium2.version.PYPDFIUM_INFO),
        "pillow": PIL.__version__,
        "fonts": version("pymupdf-fonts"),
        "png": ENCODER,
    }


class Renderer:
    """Renders units of a spec; holds the child process that does the work, and one for suspects."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.child, self.alone = (Child(FUNCTION, spec.render.limits, spec) for _ in range(2))

    def close(self) -> None:
        """Ends the children."""
        self.child.close()
        self.alone.close()

    def render(self, unit: SourceUnit) -> Iterator[Outcome]:
        """Samples and what was dropped, in the order of the unit's documents; then what was read."""
        source, waiting = unit.source, deque[RawDocument]()
        read, num_bytes = hashlib.sha256(), 0
        distance = self.spec.render.filters.near_duplicates
        duplicates = None if distance is None else Duplicates(distance)

        def calls() -> Iterator[tuple[Any, ...]]:
            nonlocal num_bytes
            for document in read_unit(unit, self.spec.render.limits.document_bytes):
                read.update(document.data)
                num_bytes += len(document.data)
                waiting.append(document)
                if not document.reason:
                    yield self._call(source, document, "mupdf")

        for answer in self.child.map(calls()):
            while waiting[0].reason:
                yield _refused(waiting.popleft())
            document = waiting.popleft()
            yield from _outcomes(document, self._second_chance(source, document, answer), duplicates)
        yield from map(_refused, waiting)
        yield InputRead(bytes=num_bytes, sha256=read.hexdigest())

    def _call(self, source: Source, document: RawDocument, engine: str) -> tuple[Any, ...]:
        about = {"id": document.id, "source": document.origin} | document.info
        return (source, document.data, document.id, about, engine)

    def _second_chance(self, source: Source, document: RawDocument, answer: Answer) -> Answer:
        """After a limit or crash: once more, alone in a fresh child; and PDFium where MuPDF fails."""
        if answer.environmental:
            answer = self._retried(source, document, "mupdf")
        if source.document_kind != "pdf" or answer.reason in (None, Reason.NOT_A_PDF, Reason.ENCRYPTED):
            return answer
        second = self.alone.call(*self._call(source, document, "pdfium"))
        if second.environmental:
            second = self._retried(source, document, "pdfium")
        return second if second.reason is None else answer

    def _retried(self, source: Source, document: RawDocument, engine: str) -> Answer:
        self.alone.close()
        answer = self.alone.call(*self._call(source, document, engine), factor=RETRY_FACTOR)
        self.alone.close()
        return answer


def _refused(document: RawDocument) -> Dropped:
    assert document.reason
    return Dropped(document.key, document.origin, document.reason, document.detail)


def _outcomes(document: RawDocument, answer: Answer, duplicates: Duplicates | None) -> Iterator[Outcome]:
    key, origin = document.key, document.origin
    if answer.reason:
        yield Dropped(key, origin, answer.reason, answer.detail)
        return
    for made in answer.value:
        if made.reason:
            yield Dropped(key + made.suffix, origin, made.reason, made.detail)
        elif duplicates and duplicates.holds(made.facts.hash):
            yield Dropped(key + made.suffix, origin, Reason.NEAR_DUPLICATE)
        else:
            fields = {"png": made.png, "cls": b"%d" % document.cls, "json": made.json}
            yield Sample(key + made.suffix, fields, made.facts)


def render_document(
    spec: Spec, source: Source, data: bytes, document_id: str, about: dict[str, Any], engine: str
) -> list[Rendered]:
    """In the child: what became of each picture of a document; `about` is what all their json begin with."""
    filters, made = spec.render.filters, list[Rendered]()
    for part in _render_kind(source, data, document_id, spec, engine):
        if isinstance(part, Lost):
            made.append(Rendered(part.suffix, reason=part.reason, detail=part.detail))
        elif (share := ink(part.image)) < filters.min_ink:
            made.append(Rendered(part.suffix, reason=Reason.TOO_LITTLE_INK if share else Reason.BLANK))
        else:
            about_it = part.about | about
            text = json.dumps(about_it, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
            png = _photo_png(part.image) if source.document_kind == "image" else encode_png(part.image)
            script = script_of(str(about_it.get("text") or "")) or ""
            facts = SampleFacts(share, script, perceptual_hash(part.image))
            made.append(Rendered(part.suffix, png, text, facts))
    if made and all(one.reason and one.reason.kind == "rejected" for one in made):
        raise Unreadable(made[0].reason or Reason.NO_PAGE, f"no page could be rendered; {made[0].detail}")
    return made


def _photo_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=PHOTO_LEVEL)
    return buffer.getvalue()


def _render_kind(source: Source, data: bytes, document_id: str, spec: Spec, engine: str) -> Iterator[Any]:
    render, size = spec.render, spec.shape.image_size
    if source.document_kind == "pdf":
        return render_pdf(data, document_id, render, spec.seed, size, engine)
    if source.document_kind == "image":
        return render_image(data, spec.stored_size, render.limits.pixels)
    try:
        text = source.text(data)
    except ValueError as error:
        raise Unreadable(Reason.BROKEN_ROW, str(error)) from None
    if render.filters.scripts and script_of(text) not in render.filters.scripts:
        return iter([Lost("", Reason.SCRIPT)])
    return render_text(text, document_id, render.text, spec.seed, render.crop_size or size, size)
