"""Pages of PDFs: rendered once each, cut at random places, with the text under every crop.

After the paper's arXiv-Image (section 4): A4 at 1260x1782 px, ten random 512 px crops a page. Two engines: PyMuPDF, and
pypdfium2 for what PyMuPDF cannot read. Both may crash or hang: call only in a child (`pipeline.isolate`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pymupdf
import pypdfium2
from PIL import Image

from data_specs.spec import PageStyle
from pipeline.filters import ink
from pipeline.renderers import Lost, Picture, Unreadable

Words = list[tuple[float, float, float, float, str]]
ENGINES = {"mupdf": f"PyMuPDF {pymupdf.__version__}", "pdfium": f"pypdfium2 {pypdfium2.version.PYPDFIUM_INFO}"}
POINTS = 72.0


def render_pdf(
    data: bytes, document_id: str, style: PageStyle, seed: int, cut: int, size: int, engine: str
) -> Iterator[Picture | Lost]:
    """Crops [size, size, 3], cut at `cut` pixels, of a PDF's pages; a page that fails is one Lost.

    Raises Unreadable where the document as a whole gives nothing: not a PDF, encrypted, no page, or only blank pages
    after a repair.
    """
    if b"%PDF-" not in data[:1024]:
        raise Unreadable("not a PDF: no %PDF- header")
    pages = _mupdf(data, style) if engine == "mupdf" else _pdfium(data, style)
    about, blank, seen = {"engine": ENGINES[engine]}, 0, 0
    for number, page in pages:
        seen += 1
        suffix = f"-p{number:04d}"
        if isinstance(page, str):
            yield Lost(suffix, page)
            continue
        image, words, repaired = page
        if repaired and ink(image) == 0:
            blank += 1
            yield Lost(suffix, "a repair left the page blank")
            continue
        yield from _crops(
            image, words, f"{seed}/{document_id}/{number}", style, cut, size, suffix, about | {"page": number}
        )
    if seen == 0:
        raise Unreadable("the document has no page")


def _crops(
    image: np.ndarray, words: Words, key: str, style: PageStyle, cut: int, size: int, suffix: str, about: dict[str, Any]
) -> Iterator[Picture | Lost]:
    height, width = image.shape[:2]
    if height < cut or width < cut:
        yield Lost(suffix, f"the page is smaller than a crop of {cut} px at {style.dpi:g} dpi", "filtered")
        return
    rng, middles = random.Random(key), _middles(words)
    for number in range(style.crops):
        left, top = rng.randint(0, width - cut), rng.randint(0, height - cut)
        under = (middles >= (left, top)) & (middles < (left + cut, top + cut))
        chosen = np.flatnonzero(under.all(axis=1))
        if len(chosen) < style.min_words:
            yield Lost(f"{suffix}-c{number:02d}", "too few words", "filtered")
            continue
        crop = image[top : top + cut, left : left + cut]
        if cut != size:
            crop = np.array(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))
        inside = [_clipped(words[index], left, top, cut, size / cut) for index in chosen]
        box = {"box": [left, top, left + cut, top + cut], "text": " ".join(w[4] for w in inside), "words": inside}
        yield Picture(f"{suffix}-c{number:02d}", np.ascontiguousarray(crop), about | box)


def _middles(words: Words) -> np.ndarray:
    """Middles of words, float [n, 2]: a word is under the crop that holds its middle."""
    return np.array([((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1, _ in words]).reshape(-1, 2)


def _clipped(word: tuple[float, float, float, float, str], left: int, top: int, cut: int, scale: float) -> list[Any]:
    """[x0, y0, x1, y1, text] in stored pixels, clipped to the crop."""
    x0, y0, x1, y1, text = word
    corners = (x0 - left, y0 - top, x1 - left, y1 - top)
    return [*(round(min(max(c, 0), cut) * scale, 1) for c in corners), text]


Page = tuple[np.ndarray, Words, bool]


def _check_pixels(width: float, height: float, style: PageStyle) -> str | None:
    scale = style.dpi / POINTS
    if width <= 0 or height <= 0 or width * height * scale * scale > style.max_pixels:
        return f"a page of {width:.0f}x{height:.0f} pt is outside the limit of {style.max_pixels} pixels"
    return None


def _mupdf(data: bytes, style: PageStyle) -> Iterator[tuple[int, Page | str]]:
    pymupdf.TOOLS.mupdf_display_errors(False)
    try:
        document = pymupdf.open(stream=data, filetype="pdf")
    except RuntimeError as error:
        raise Unreadable(f"cannot be opened: {_short(error)}") from None
    with document:
        if document.needs_pass:
            raise Unreadable("encrypted: needs a password")
        for number in range(min(document.page_count, style.max_pages)):
            try:
                yield number, _mupdf_page(document, number, style)
            except (RuntimeError, ValueError, IndexError) as error:
                yield number, _short(error)
        pymupdf.TOOLS.store_shrink(100)


def _mupdf_page(document: Any, number: int, style: PageStyle) -> Page | str:
    page = document[number]
    if fault := _check_pixels(page.rect.width, page.rect.height, style):
        return fault
    scale = style.dpi / POINTS
    pixmap = page.get_pixmap(dpi=None, matrix=pymupdf.Matrix(scale, scale), colorspace=pymupdf.csRGB, alpha=False)
    image = np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)  # a copy that outlives it
    words = [(w[0] * scale, w[1] * scale, w[2] * scale, w[3] * scale, w[4]) for w in page.get_text("words")]
    return image, words, bool(document.is_repaired)


def _pdfium(data: bytes, style: PageStyle) -> Iterator[tuple[int, Page | str]]:
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise Unreadable(f"cannot be opened: {_short(error)}") from None
    for number in range(min(len(document), style.max_pages)):
        try:
            yield number, _pdfium_page(document, number, style)
        except (pypdfium2.PdfiumError, ValueError, MemoryError) as error:
            yield number, _short(error)


def _pdfium_page(document: Any, number: int, style: PageStyle) -> Page | str:
    page = document[number]
    width, height = page.get_size()
    if fault := _check_pixels(width, height, style):
        return fault
    scale = style.dpi / POINTS
    image = np.ascontiguousarray(page.render(scale=scale, rev_byteorder=True).to_numpy()[..., :3])
    return image, _pdfium_words(page, height, scale), True


def _pdfium_words(page: Any, height: float, scale: float) -> Words:
    """Words from runs of characters without white space; PDFium counts y from below."""
    text = page.get_textpage()
    words, letters, boxes = list[tuple[float, float, float, float, str]](), "", list[tuple[float, ...]]()
    for index in range(text.count_chars() + 1):
        letter = text.get_text_range(index, 1) if index < text.count_chars() else " "
        if letter.strip():
            letters += letter
            boxes.append(text.get_charbox(index))
        elif letters:
            x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
            x1, y1 = max(b[2] for b in boxes), max(b[3] for b in boxes)
            words.append((x0 * scale, (height - y1) * scale, x1 * scale, (height - y0) * scale, letters))
            letters, boxes = "", []
    return words


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
