"""Rendering a unit: documents are read, rendered in a killable child, filtered, and become samples with their json."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL
import pymupdf
import pypdfium2
from PIL import Image

from data_specs import storage
from data_specs.spec import Spec
from data_specs.units import Dropped, Outcome, Sample, Unit
from pipeline.filters import UnitFilter, script_of
from pipeline.isolate import Answer, Child
from pipeline.renderers import Lost, Unreadable
from pipeline.renderers.images import render_image
from pipeline.renderers.pages import render_pdf
from pipeline.renderers.text import render_text
from pipeline.splits import key_of

PNG_LEVEL = 1  # higher levels cost three times the time of rendering for a tenth of the bytes
RETRY_FACTOR = 4.0
Rendered = list[tuple[str, bytes | None, dict[str, Any] | None, str, str]]


def versions() -> dict[str, str]:
    """Versions that decide the bytes of image shards."""
    return {
        "pymupdf": pymupdf.__version__,
        "pypdfium2": str(pypdfium2.version.PYPDFIUM_INFO),
        "pillow": PIL.__version__,
        "fonts": version("pymupdf-fonts"),
    }


class Renderer:
    """Renders units of a spec; holds the child process that does the work."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.child = Child("pipeline.render:render_document", spec.render.limits)

    def close(self) -> None:
        """Ends the child."""
        self.child.close()

    def render(self, unit: Unit) -> Iterator[Outcome]:
        """Samples and what was dropped, in the order of the unit's documents."""
        files = [storage.FileInfo(*file) for file in unit["files"]]
        for file in files:
            if storage.stat(file.uri) != file:
                raise ValueError(f"{file.uri}: is not the file that was planned (its size or etag changed); plan anew")
        filters, seen = UnitFilter(self.spec.render.filters), set[str]()
        for document_id, file_number, start, length, cls in unit["documents"]:
            file, key = files[file_number], key_of(document_id)
            if key in seen:
                yield Dropped(key, _origin(file, start), "its id comes twice in one unit")
                continue
            seen.add(key)
            yield from self._document(unit["source"], document_id, key, file, (start, length), cls, filters)

    def _document(
        self,
        source: dict[str, Any],
        document_id: str,
        key: str,
        file: storage.FileInfo,
        span: tuple[Any, Any],
        cls: int,
        filters: UnitFilter,
    ) -> Iterator[Outcome]:
        origin = _origin(file, span[0])
        if (span[1] or file.size) > self.spec.render.limits.document_bytes:
            yield Dropped(key, origin, "larger than render.limits.document_bytes")
            return
        data = storage.read_bytes(file.uri, *span)
        answer = self._render(source["kind"], data, document_id, source)
        if answer.reason:
            yield Dropped(key, origin, answer.reason, environmental=answer.environmental)
            return
        about = {"id": document_id, "source": origin, "licence": source.get("licence")}
        for suffix, png, of_picture, reason, kind in answer.value:
            if png is None or of_picture is None:
                yield Dropped(key + suffix, origin, reason, kind)
                continue
            image = _decode(png)
            if dropped := filters.reason(image):
                yield Dropped(key + suffix, origin, dropped, "filtered")
                continue
            text = json.dumps(about | of_picture, sort_keys=True, ensure_ascii=False).encode()
            yield Sample(key + suffix, {"png": png, "cls": b"%d" % cls, "json": text})

    def _render(self, kind: str, data: bytes, document_id: str, source: dict[str, Any]) -> Answer:
        """One document, with a retry alone in a fresh child after a limit or crash, and PDFium where MuPDF fails."""
        arguments = (kind, data, document_id, source, self.spec)
        answer = self._retried(*arguments, "mupdf")
        if kind != "pdf" or answer.reason is None or "%PDF-" in answer.reason or "encrypted" in answer.reason:
            return answer
        second = self._retried(*arguments, "pdfium")
        return second if second.reason is None else Answer(None, answer.reason, answer.environmental)

    def _retried(self, *arguments: Any) -> Answer:
        answer = self.child.call(*arguments)
        if answer.environmental:
            self.child.close()
            answer = self.child.call(*arguments, factor=RETRY_FACTOR)
            self.child.close()
        return answer


def _origin(file: storage.FileInfo, start: int | None) -> str:
    """Where a document stands, without the folders of this machine: file name, and the byte it begins at."""
    name = file.uri.rpartition("/")[2]
    return name if start is None else f"{name}#{start}"


def _decode(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


def render_document(
    kind: str, data: bytes, document_id: str, source: dict[str, Any], spec: Spec, engine: str
) -> Rendered:
    """In the child: (suffix, PNG or None, json or None, reason, kind) of each picture of a document."""
    made: Rendered = []
    for part in _render_kind(kind, data, document_id, source, spec, engine):
        if isinstance(part, Lost):
            made.append((part.suffix, None, None, part.reason, part.kind))
        else:
            buffer = io.BytesIO()
            Image.fromarray(part.image).save(buffer, "PNG", compress_level=PNG_LEVEL)
            made.append((part.suffix, buffer.getvalue(), part.about, "", ""))
    if made and all(png is None and kind == "rejected" for _, png, _, _, kind in made):
        raise Unreadable(f"no page could be rendered: {made[0][3]}")
    return made


def _render_kind(
    kind: str, data: bytes, document_id: str, source: dict[str, Any], spec: Spec, engine: str
) -> Iterator[Any]:
    render, size = spec.render, spec.shape.image_size
    if kind == "pdf":
        return render_pdf(data, document_id, render.pages, spec.seed, render.crop_size or size, size, engine)
    if kind == "images":
        return render_image(data, spec.stored_size, render.limits.pixels)
    text = _passage(data, source["text_key"])
    if render.filters.scripts and script_of(text) not in render.filters.scripts:
        return iter([Lost("", f"script {script_of(text)}", "filtered")])
    return render_text(text, document_id, render.text, spec.seed, render.crop_size or size, size)


def _passage(line: bytes, text_key: str) -> str:
    try:
        return str(json.loads(line)[text_key])
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"a broken line: {type(error).__name__} {error}"[:160]) from None
