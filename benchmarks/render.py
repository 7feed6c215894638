"""Rendering: the stage of one worker against bare loops that make the same pictures, and what isolation costs.

The stage has two processes, the worker and the child that renders: rates are by the CPU time of both together.
"""

from __future__ import annotations

import html
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pypdfium2
from markdown_it import MarkdownIt
from PIL import Image

from benchmarks.codes import IDENTITY
from benchmarks.rounds import Comparison, Work, compare
from data_specs import storage
from data_specs.digest import digest_of
from data_specs.mupdf import mupdf, pymupdf
from data_specs.receipts import commit
from data_specs.records import RawDocument
from data_specs.source import Source
from data_specs.sources.planning import cut
from data_specs.spec import Spec, load_spec
from pipeline.job import rendering
from pipeline.png import encode_png, grey_plane
from pipeline.render import Renderer, render_document
from pipeline.renderers.fonts import FACES
from pipeline.renderers.words import POINTS

KEEP_ALL = [
    "render.pages.min_words=0",
    "render.filters.min_ink=0",
    "render.val_share=0",
    "train.validate_every=null",
    "render.documents_per_unit=100000",
]
SOURCES = {
    "pages": "{kind: typeset, documents: 4, vocabulary: 200}",
    "text": "{kind: docstrings, passages: 60, min_words: %d, max_words: %d}",  # as many words as the preset draws
    "markdown": "{kind: docstrings, passages: 60, min_words: %d, max_words: %d, markdown: true}",
}
STYLE = {"markdown": ["render.text={fonts: [noto-sans], weights: [regular], sizes: [28, 28], colours: ['#1a237e']}"]}
PUBLISHED = {"pages": "arxiv_image_16x16x8", "text": "text_image_plain", "markdown": "text_image_24x24x1"}
PAGES_EACH = 3  # of PDFs that are given
Encode = Callable[[np.ndarray], object]


def render(kind: str, preset: str, rounds: int, pdfs: Path | None = None) -> dict[str, Comparison]:
    """Measure the pictures/s of `kind` "pages", "text" or "markdown" against each baseline.

    They are returned by the name of what is compared.

    Pages are typeset here, or the first PAGES_EACH of each PDF of a folder `pdfs`.

    The stage reads documents, renders in a child, reads words and boxes, and commits a shard. Against it: drawing and
    Pillow's PNG alone, as one would write it; and the same with words read and with our PNG encoder, the stage's limit.
    """
    spec = _spec_of(kind, preset, pdfs)
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as folder:
        renderer = Renderer(spec)

        def clock() -> float:
            child = renderer.child.process
            return time.process_time() + (sum(psutil.Process(child.pid).cpu_times()[:2]) if child else 0.0)

        try:
            works = _works(kind, spec, folder, pdfs or Path(folder, "inputs"), renderer)
            return {name: compare(ours, baseline, rounds, clock=clock) for name, (ours, baseline) in works.items()}
        finally:
            renderer.close()


def _spec_of(kind: str, preset: str, pdfs: Path | None) -> Spec:
    """Return the preset with one source of documents, all of which are rendered."""
    words = load_spec(preset).render.text.max_words
    source = SOURCES[kind] if kind == "pages" else SOURCES[kind] % (words // 2, words)
    if not pdfs:
        return load_spec(preset, [f"render.sources=[{source}]", *KEEP_ALL, *STYLE.get(kind, ())])
    given = [f"render.sources=[{{kind: pdf, uri: {json.dumps(str(pdfs))}}}]", f"render.pages.max_pages={PAGES_EACH}"]
    return load_spec(preset, [*given, *KEEP_ALL])


def _works(kind: str, spec: Spec, folder: str, inputs: Path, renderer: Renderer) -> dict[str, tuple[Work, Work]]:
    """Return what is compared, ours before its baseline."""
    sources = [source.prepare(storage.join(folder, "inputs")) for source in spec.render.sources]
    (_, unit), *_ = cut(spec.render, sources)
    calls = list(_calls(unit.source, inputs))
    numbers = count()
    bare = {"pages": _bare_pages, "text": _bare_text, "markdown": _bare_markdown}[kind]

    def stage() -> int:
        number = next(numbers)
        work = rendering(renderer, storage.join(folder, "set"))
        return commit(storage.join(folder, f"set{number}"), digest_of(IDENTITY), number, work(unit)).written

    works: dict[str, tuple[Work, Work]] = {
        "the stage x a bare loop with Pillow's PNG": (stage, lambda: bare(spec, inputs, _pillow_png, words=False)),
        "the stage x the same work without child and shard": (
            stage,
            lambda: bare(spec, inputs, encode_png, words=True),
        ),
        "in a child x in this process": (
            lambda: sum(len(answer.value or ()) for answer in renderer.child.map(calls)),
            lambda: sum(len(render_document(spec, *call)) for call in calls),
        ),
    }
    if kind == "pages":
        works["the stage x a bare loop with pypdfium2 and Pillow's PNG"] = (
            stage,
            lambda: _cut_and_encode(spec, _pages_by_pdfium(inputs, spec), _pillow_png),
        )
    return works


def _calls(source: Source, inputs: Path) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of render_document for every document."""
    files = sorted(inputs.rglob("*.pdf")) if source.kind == "pdf" else []
    documents = [path.read_bytes() for path in files] or _lines(inputs)
    for number, data in enumerate(documents):
        yield source, RawDocument(str(number), str(number), "file", data=data), {}


def _lines(inputs: Path) -> Iterator[bytes]:
    for path in sorted(inputs.rglob("*.jsonl")):
        yield from path.read_bytes().splitlines()


def _pillow_png(image: np.ndarray) -> None:
    plane = grey_plane(image)  # as ours: a grey picture is one plane
    Image.fromarray(image if plane is None else plane).save(io.BytesIO(), "PNG", compress_level=1)


def _bare_pages(spec: Spec, inputs: Path, encode: Encode, words: bool) -> int:
    """Pages rendered once, crops cut at random and encoded; with `words`, those of each page are read."""
    return _cut_and_encode(spec, _pages_by_mupdf(inputs, spec, words), encode)


def _pages_by_mupdf(inputs: Path, spec: Spec, words: bool) -> Iterator[np.ndarray]:
    scale = spec.render.pages.dpi / POINTS
    for path in sorted(inputs.rglob("*.pdf")):
        with pymupdf.open(path) as document:
            for page in islice(document, spec.render.pages.max_pages):
                pixmap = page.get_pixmap(matrix=pymupdf.Matrix(scale, scale), colorspace=pymupdf.csRGB, alpha=False)
                if words:
                    page.get_text("words")
                yield np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)


def _pages_by_pdfium(inputs: Path, spec: Spec) -> Iterator[np.ndarray]:
    for path in sorted(inputs.rglob("*.pdf")):
        with pypdfium2.PdfDocument(path) as document:
            for page in islice(document, spec.render.pages.max_pages):
                yield page.render(scale=spec.render.pages.dpi / POINTS, rev_byteorder=True).to_numpy()


def _cut_and_encode(spec: Spec, pages: Iterator[np.ndarray], encode: Encode) -> int:
    size = spec.shape.image_size
    rng = random.Random(0)
    made = 0
    side = spec.render.crop_size or size
    for image in pages:
        height, width = image.shape[:2]
        if min(height, width) < side:
            continue
        for _ in range(spec.render.pages.crops):
            top, left = rng.randint(0, height - side), rng.randint(0, width - side)
            crop = image[top : top + side, left : left + side]
            if side != size:
                crop = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))
            encode(crop)
            made += 1
    return made


def _bare_text(spec: Spec, inputs: Path, encode: Encode, words: bool) -> int:
    """Passages laid out by Story as one paragraph, drawn and encoded; with `words`, those of each picture are read."""
    bodies = (f"<p>{html.escape(json.loads(line)['text'])}</p>" for line in _lines(inputs))
    return _by_story(spec, bodies, encode, words)


def _bare_markdown(spec: Spec, inputs: Path, encode: Encode, words: bool) -> int:
    """Lay out, draw and encode Markdown as `_bare_text` does passages."""
    converter = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return _by_story(spec, (converter.render(json.loads(line)["text"]) for line in _lines(inputs)), encode, words)


def _by_story(spec: Spec, bodies: Iterator[str], encode: Encode, words: bool) -> int:
    style = spec.render.text
    size = spec.shape.image_size
    canvas = spec.render.crop_size or size
    made = 0
    archive = pymupdf.Archive()
    margin = style.margins[0]
    face = style.fonts[0]
    css = f"body {{margin: 0; font-family: {face}; font-size: {style.sizes[0]}px; color: {style.colours[0]}}}"
    if face in FACES:
        css += pymupdf.css_for_pymupdf_font(FACES[face][0], archive=archive, name=face)
    for body in bodies:
        story = pymupdf.Story(body, user_css=css, archive=archive)
        story.place(pymupdf.Rect(margin, margin, canvas - margin, canvas - margin))
        drawing = pymupdf.DisplayList(mupdf.FzRect(0, 0, canvas, canvas))
        device = mupdf.fz_new_list_device(drawing.this)
        mupdf.fz_draw_story(story.this, device, mupdf.FzMatrix())
        mupdf.fz_close_device(device)
        pixmap = drawing.get_pixmap(pymupdf.Matrix(size / canvas, size / canvas), pymupdf.csRGB, 0)
        encode(np.frombuffer(pixmap.samples, np.uint8).reshape(size, size, 3))
        if words:
            pymupdf.TextPage(drawing.get_textpage(pymupdf.TEXTFLAGS_WORDS)).extractWORDS()
        made += 1
    return made
