"""Pages of PDFs: rendered once each, cut at random places, with the text under every crop.

After the paper's arXiv-Image (section 4): A4 at 1260x1782 px, ten random 512 px crops a page. Two engines: PyMuPDF, and
pypdfium2 for what PyMuPDF cannot read. Both may crash or hang: call only in a child (`pipeline.isolate`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pymupdf
import pypdfium2
from PIL import Image

from data_specs.records import Reason
from data_specs.spec import Filters, PageStyle, Render
from pipeline.filters import ink, script_of
from pipeline.png import from_plane, grey_plane
from pipeline.renderers import Lost, Picture, Unreadable

ENGINES = {"mupdf": f"PyMuPDF {pymupdf.__version__}", "pdfium": f"pypdfium2 {pypdfium2.version.PYPDFIUM_INFO}"}
POINTS = 72.0
SCANNED = 0.8  # share of a page without words under one picture, from which it counts as scanned


class Words(NamedTuple):
    """Words of a page in reading order: boxes float [n, 4] (x0, y0, x1, y1 in pixels of the page) and their texts."""

    boxes: np.ndarray
    texts: list[str]


class Page(NamedTuple):
    """A rendered page: uint8 [H, W, 3], its words, and what the engine says of it."""

    image: np.ndarray
    words: Words
    repaired: bool
    pictured: float  # share of the page under its largest picture; 0 where it has words, or nobody asks


def _words(found: list[tuple[Any, ...]], scale: float) -> Words:
    """Words from (x0, y0, x1, y1, text, …) in points."""
    boxes = np.array([word[:4] for word in found], dtype=np.float64).reshape(-1, 4)
    return Words(boxes * scale, [word[4] for word in found])


def render_pdf(
    data: bytes, document_id: str, render: Render, seed: int, size: int, engine: str
) -> Iterator[Picture | Lost]:
    """Crops [size, size, 3] of a PDF's pages, cut at the spec's crop_size; a page that fails, or is not wanted, is one
    Lost.

    Raises Unreadable where the document as a whole gives nothing: not a PDF, encrypted, no page, or only blank pages
    after a repair.
    """
    if b"%PDF-" not in data[:1024]:
        raise Unreadable(Reason.NOT_A_PDF, "no %PDF- header")
    style, cut, number = render.pages, render.crop_size or size, -1
    pages, scans = _mupdf if engine == "mupdf" else _pdfium, render.filters.scanned == "drop"
    for number, page in pages(data, style, scans):
        suffix = f"-p{number:04d}"
        if isinstance(page, Unreadable):
            yield Lost(suffix, page.reason, page.detail)
        elif page.repaired and ink(page.image) == 0:
            yield Lost(suffix, Reason.BLANK_AFTER_REPAIR)
        elif unwanted := _unwanted(page, render.filters):
            yield Lost(suffix, unwanted)
        else:
            about = {"engine": ENGINES[engine], "page": number}
            yield from _crops(page, f"{seed}/{document_id}/{number}", style, cut, size, suffix, about)
    if number < 0:
        raise Unreadable(Reason.NO_PAGE)


def _unwanted(page: Page, filters: Filters) -> Reason | None:
    """Why the spec's filters take a whole page, or None. A page without letters has no script, and stays."""
    if page.pictured >= SCANNED:
        return Reason.SCANNED
    if filters.scripts and script_of(" ".join(page.words.texts)) not in (*filters.scripts, None):
        return Reason.SCRIPT
    return None


def _crops(
    page: Page, key: str, style: PageStyle, cut: int, size: int, suffix: str, about: dict[str, Any]
) -> Iterator[Picture | Lost]:
    (height, width), words = page.image.shape[:2], page.words
    if height < cut or width < cut:
        yield Lost(suffix, Reason.PAGE_TOO_SMALL, f"a crop has {cut} px at {style.dpi:g} dpi")
        return
    rng, middles = random.Random(key), (words.boxes[:, :2] + words.boxes[:, 2:]) / 2
    for number in range(style.crops):
        left, top = rng.randint(0, width - cut), rng.randint(0, height - cut)
        under = (middles >= (left, top)) & (middles < (left + cut, top + cut))  # the crop that holds a word's middle
        chosen = np.flatnonzero(under.all(axis=1))
        if len(chosen) < style.min_words:
            yield Lost(f"{suffix}-c{number:02d}", Reason.TOO_FEW_WORDS)
            continue
        box = {"box": [left, top, left + cut, top + cut]} | _under(words, chosen, left, top, cut, size / cut)
        crop = _reduced(page.image[top : top + cut, left : left + cut], size)
        yield Picture(f"{suffix}-c{number:02d}", crop, about | box)


def _reduced(crop: np.ndarray, size: int) -> np.ndarray:
    """A crop [size, size, 3]; a grey one is reduced in one plane, which gives each channel as three would."""
    plane = grey_plane(crop)
    small = np.ascontiguousarray(crop) if plane is None else plane
    if len(crop) != size:
        small = np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))
    return small if plane is None else from_plane(small)


def _under(words: Words, chosen: np.ndarray, left: int, top: int, cut: int, scale: float) -> dict[str, Any]:
    """Text and words [x0, y0, x1, y1, text] of a crop, boxes in stored pixels, clipped to it."""
    boxes = np.clip(words.boxes[chosen] - (left, top, left, top), 0, cut) * scale
    texts = [words.texts[index] for index in chosen]
    return {"text": " ".join(texts), "words": [[*b, t] for b, t in zip(boxes.round(1).tolist(), texts, strict=True)]}


def _check_pixels(width: float, height: float, style: PageStyle) -> None:
    scale = style.dpi / POINTS
    if width <= 0 or height <= 0 or width * height * scale * scale > style.max_pixels:
        size = f"a page of {width:.0f}x{height:.0f} pt is outside the limit of {style.max_pixels} pixels"
        raise Unreadable(Reason.TOO_LARGE, size)


def _mupdf(data: bytes, style: PageStyle, scans: bool = False) -> Iterator[tuple[int, Page | Unreadable]]:
    pymupdf.TOOLS.mupdf_display_errors(False)
    try:
        document = pymupdf.open(stream=data, filetype="pdf")
    except RuntimeError as error:
        raise Unreadable(Reason.UNREADABLE, _short(error)) from None
    with document:
        if document.needs_pass:
            raise Unreadable(Reason.ENCRYPTED)
        for number in range(min(document.page_count, style.max_pages)):
            try:
                yield number, _mupdf_page(document, number, style, scans)
            except (RuntimeError, ValueError, IndexError) as error:
                yield number, _page_failed(error)
        pymupdf.TOOLS.store_shrink(100)


def _mupdf_page(document: Any, number: int, style: PageStyle, scans: bool) -> Page:
    page = document[number]
    _check_pixels(page.rect.width, page.rect.height, style)
    scale = style.dpi / POINTS
    drawing = page.get_displaylist()  # interpreted once, for the picture and for the words
    pixmap = drawing.get_pixmap(pymupdf.Matrix(scale, scale), pymupdf.csRGB, 0)
    image = np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)  # a copy that outlives it
    found = pymupdf.TextPage(drawing.get_textpage(pymupdf.TEXTFLAGS_WORDS)).extractWORDS()
    pictured = 0.0
    if scans and not found:
        pictures = pymupdf.TextPage(drawing.get_textpage(pymupdf.TEXT_PRESERVE_IMAGES)).extractIMGINFO()
        pictured = _share((picture["bbox"] for picture in pictures), page.rect.width * page.rect.height)
    return Page(image, _words(found, scale), bool(document.is_repaired), pictured)


def _share(boxes: Iterable[tuple[float, ...]], area: float) -> float:
    """Share of an area under the largest of some boxes (x0, y0, x1, y1)."""
    return max(((x1 - x0) * (y1 - y0) / area for x0, y0, x1, y1 in boxes), default=0.0)


def _pdfium(data: bytes, style: PageStyle, scans: bool = False) -> Iterator[tuple[int, Page | Unreadable]]:
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise Unreadable(Reason.UNREADABLE, _short(error)) from None
    with document:
        for number in range(min(len(document), style.max_pages)):
            try:
                yield number, _pdfium_page(document, number, style, scans)
            except (pypdfium2.PdfiumError, ValueError) as error:
                yield number, _page_failed(error)


def _pdfium_page(document: Any, number: int, style: PageStyle, scans: bool) -> Page:
    page = document[number]
    width, height = page.get_size()
    _check_pixels(width, height, style)
    scale = style.dpi / POINTS
    image = np.ascontiguousarray(page.render(scale=scale, rev_byteorder=True).to_numpy()[..., :3])
    words, pictured = _pdfium_words(page, height, scale), 0.0
    if scans and not words.texts:
        pictures = page.get_objects(filter=(pypdfium2.raw.FPDF_PAGEOBJ_IMAGE,), max_depth=4)
        pictured = _share((picture.get_bounds() for picture in pictures), width * height)
    return Page(image, words, True, pictured)


def _pdfium_words(page: Any, height: float, scale: float) -> Words:
    """Words from runs of characters without white space; PDFium counts y from below."""
    text = page.get_textpage()
    found, letters, boxes = list[tuple[Any, ...]](), "", list[tuple[float, ...]]()
    for index in range(text.count_chars() + 1):
        letter = text.get_text_range(index, 1) if index < text.count_chars() else " "
        if letter.strip():
            letters += letter
            boxes.append(text.get_charbox(index))
        elif letters:
            x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
            x1, y1 = max(b[2] for b in boxes), max(b[3] for b in boxes)
            found.append((x0, height - y1, x1, height - y0, letters))
            letters, boxes = "", []
    return _words(found, scale)


def _page_failed(error: Exception) -> Unreadable:
    return error if isinstance(error, Unreadable) else Unreadable(Reason.PAGE_FAILED, _short(error))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
