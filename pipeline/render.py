"""Rendering a unit: documents are read, rendered in a killable child, filtered, and become samples with their json."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

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
from pipeline.filters import Kept, Observation, ink, perceptual_hash, script_of, taken_by
from pipeline.isolate import Answer, Child
from pipeline.png import ENCODER, encode_photo, encode_png
from pipeline.renderers import NoPicture, Picture, UnreadableError
from pipeline.renderers.images import render_image
from pipeline.renderers.pages import NOTHING, OPENING, Ended, render_pdf
from pipeline.renderers.text import render_text

RETRY_FACTOR = 4.0
TRIES = 3  # of a document that a limit or crash has ended
FUNCTION = "pipeline.render:render_document"  # what the children run


class Rendered(NamedTuple):
    """What the child says of one picture: its files and its row of the table; or a reason."""

    suffix: str
    png: bytes = b""
    json: bytes = b""
    row: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    reason: Reason | None = None
    detail: str = ""


def versions() -> dict[str, str]:
    """Versions that decide the bytes of image shards."""
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
        self.child, self.alone = (Child(FUNCTION, spec.render.limits, spec) for _ in range(2))

    def close(self) -> None:
        """Ends the children."""
        self.child.close()
        self.alone.close()

    def render(self, unit: SourceUnit) -> Iterator[Outcome]:
        """Samples and what was dropped, in the order of the unit's documents; then what was read."""
        source = unit.source
        waiting = deque[RawDocument]()
        read = hashlib.sha256()
        num_bytes = 0
        filters = self.spec.render.filters
        kept = Kept()

        def calls() -> Iterator[tuple[Any, ...]]:
            nonlocal num_bytes
            for document in read_unit(unit, self.spec.render.limits.document_bytes):
                read.update(document.data)
                num_bytes += len(document.data)
                waiting.append(document)
                if not document.reason:
                    yield self._call(source, document)

        for answer in self.child.map(calls()):
            while waiting[0].reason:
                yield _refused(waiting.popleft())
            document = waiting.popleft()
            yield from _outcomes(document, self._second_chance(source, document, answer), filters, kept)
        yield from map(_refused, waiting)
        yield InputRead(bytes=num_bytes, sha256=read.hexdigest())

    def _call(self, source: Source, document: RawDocument, ended: Ended = NOTHING) -> tuple[Any, ...]:
        about = {"source": document.origin} | document.info
        return source, document.data, document.id, about, dict(ended)

    def _second_chance(self, source: Source, document: RawDocument, answer: Answer) -> Answer:
        """After a limit or crash: once more, alone in a fresh child; then without the engine that a page ends."""
        ended = defaultdict[int, list[tuple[Reason, str]]](list)
        for _ in range(TRIES if source.document_kind == "pdf" else 1):
            if not answer.environmental:
                break
            self.alone.close()
            answer = self.alone.call(*self._call(source, document, ended), factor=RETRY_FACTOR)
            self.alone.close()
            if answer.reason and answer.environmental:
                ended[OPENING if answer.step is None else answer.step].append((answer.reason, answer.detail))
        return answer


def _refused(document: RawDocument) -> Dropped:
    assert document.reason
    return Dropped(document.key, document.origin, document.reason, document.detail)


def _outcomes(document: RawDocument, answer: Answer, filters: Filters, kept: Kept) -> Iterator[Outcome]:
    key, origin = document.key, document.origin
    if answer.reason:
        yield Dropped(key, origin, answer.reason, answer.detail)
        return
    for made in answer.value:
        if made.reason:
            yield Dropped(key + made.suffix, origin, made.reason, made.detail)
            continue
        looks_back = filters.near_duplicates is not None
        if looks_back and (taken := taken_by(filters, Observation(nearest=kept.nearest(made.row["hash"])))):
            yield Dropped(key + made.suffix, origin, *taken)
        else:
            if looks_back:
                kept.add(made.row["hash"])
            fields = {"png": made.png, "cls": b"%d" % document.cls, "json": made.json}
            yield Sample(key + made.suffix, fields, made.row)


def render_document(
    spec: Spec, source: Source, data: bytes, document_id: str, about: dict[str, Any], ended: Ended
) -> list[Rendered]:
    """In the child: what became of each picture of a document; `about` is what is known of all of them."""
    filters = spec.render.filters
    made = list[Rendered]()
    known = {"id": document_id} | about
    texts = {key: str(value or "").encode("utf-8", "replace").decode() for key, value in known.items()}
    for part in _render_kind(source, data, document_id, spec, ended):
        if isinstance(part, NoPicture):
            made.append(Rendered(part.suffix, reason=part.reason, detail=part.detail))
            continue
        share = ink(part.image)
        if taken := taken_by(filters, Observation(ink=share)):
            made.append(Rendered(part.suffix, reason=taken[0], detail=taken[1]))
        else:
            info = SampleInfo.model_validate(part.about | texts)
            png = encode_photo(part.image) if source.document_kind == "image" else encode_png(part.image)
            seen = {"ink": share, "script": script_of(info.text) or "", "hash": perceptual_hash(part.image)}
            made.append(Rendered(part.suffix, png, info.to_json(), row_of(dict(info)) | seen))
    if made and all(one.reason and one.reason.kind == "rejected" for one in made):
        raise UnreadableError(made[0].reason or Reason.NO_PAGE, made[0].detail)
    return made


def _render_kind(
    source: Source, data: bytes, document_id: str, spec: Spec, ended: Ended
) -> Iterator[Picture | NoPicture]:
    render, size = spec.render, spec.shape.image_size
    if source.document_kind == "pdf":
        return render_pdf(data, document_id, render, spec.seed, size, ended)
    if source.document_kind == "image":
        return render_image(data, spec.stored_size, render.limits, render.store == "whole")
    try:
        text = source.text(data)
    except ValueError as error:
        raise UnreadableError(Reason.BROKEN_ROW, str(error)) from None
    script = (script_of(text) or "") if render.filters.scripts else None
    if taken := taken_by(render.filters, Observation(script=script)):
        return iter([NoPicture("", *taken)])
    style = render.text
    canvas = render.crop_size or size
    return render_text(text, document_id, style, spec.seed, canvas, size, source.text_format)
