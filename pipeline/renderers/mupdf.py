"""MuPDF: pages with the characters that it paints. It may crash or hang: call it only in a child."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pymupdf
from pymupdf import mupdf

from data_specs.records import Reason
from data_specs.sections import PageStyle
from pipeline.png import in_one_plane
from pipeline.renderers import UnreadableError, short
from pipeline.renderers.words import (
    BREAK,
    CONTRAST,
    Character,
    Page,
    ReadPage,
    Words,
    gather,
    is_pale,
    page_scale,
    paper,
    share_under,
    visible,
)

NAME = f"PyMuPDF {pymupdf.__version__}"
ERRORS = (RuntimeError, ValueError, IndexError, mupdf.FzErrorBase)
FLAGS = pymupdf.TEXT_PRESERVE_WHITESPACE | pymupdf.TEXT_PRESERVE_LIGATURES | pymupdf.TEXT_ACCURATE_BBOXES
EVERYWHERE = (-1e6, -1e6, 1e6, 1e6)
_PAINTED = mupdf.FZ_STEXT_FILLED | mupdf.FZ_STEXT_STROKED | mupdf.FZ_STEXT_CLIPPED


@contextmanager
def open_pdf(data: bytes) -> Iterator[tuple[int, ReadPage]]:
    """A PDF's number of pages, and the function that renders one of them.

    Raises:
        UnreadableError: it cannot be opened, or is encrypted.
    """
    pymupdf.TOOLS.mupdf_display_errors(False)
    try:
        document = pymupdf.open(stream=data, filetype="pdf")
        num_pages = 0 if document.needs_pass else document.page_count
    except ERRORS as error:
        raise UnreadableError(Reason.UNREADABLE, short(error)) from None
    with document:
        if document.needs_pass:
            raise UnreadableError(Reason.ENCRYPTED, "needs a password")
        yield num_pages, partial(_page, document)
        pymupdf.TOOLS.store_shrink(100)


def _page(document: Any, number: int, style: PageStyle) -> Page:
    try:
        return _read_page(document, number, style)
    except mupdf.FzErrorSystem as error:  # its malloc gives nothing
        raise MemoryError(short(error)) from None


def _read_page(document: Any, number: int, style: PageStyle) -> Page:
    page = document[number]
    width, height = page.rect.width, page.rect.height
    scale = page_scale(width, height, style)
    drawing = page.get_displaylist()  # interpreted once, for the picture and for the words
    image = draw(drawing, scale)
    words, pictured = read(drawing, image, scale), 0.0
    if not words.texts:
        pictures = pymupdf.TextPage(drawing.get_textpage(pymupdf.TEXT_PRESERVE_IMAGES)).extractIMGINFO()
        pictured = share_under((picture["bbox"] for picture in pictures), width * height)
    return Page(image, words, bool(document.is_repaired), pictured)


def draw(drawing: pymupdf.DisplayList, scale: float) -> np.ndarray:
    """The picture of a display list, uint8 [H, W, 3]."""
    pixmap = drawing.get_pixmap(pymupdf.Matrix(scale, scale), pymupdf.csRGB, 0)
    return in_one_plane(np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3))


def read(drawing: pymupdf.DisplayList, image: np.ndarray, scale: float) -> Words:
    """The words that can be seen of a display list in its picture."""
    whole, clipped = _text(drawing, FLAGS), _text(drawing, FLAGS | pymupdf.TEXT_CLIP)
    words = _visible(whole, image, scale)
    return words if whole.extractText() == clipped.extractText() else words.clipped_to(_visible(clipped, image, scale))


def is_clipped(drawing: pymupdf.DisplayList) -> bool:
    """Whether characters of a display list are clipped away."""
    return len({_text(drawing, FLAGS | clip).extractText() for clip in (0, pymupdf.TEXT_CLIP)}) > 1


def _text(drawing: pymupdf.DisplayList, flags: int) -> pymupdf.TextPage:
    """The text of a display list, also what lies off the page."""
    options, everywhere = mupdf.FzStextOptions(), mupdf.FzRect(*EVERYWHERE)
    options.flags = flags
    page = pymupdf.TextPage(everywhere)
    device = mupdf.fz_new_stext_device(page.this, options)
    mupdf.fz_run_display_list(drawing.this, device, mupdf.FzMatrix(), everywhere, mupdf.FzCookie())
    mupdf.fz_close_device(device)
    return page


def _visible(page: pymupdf.TextPage, image: np.ndarray, scale: float) -> Words:
    lines = [line for block in page.extractRAWDICT()["blocks"] for line in block.get("lines", ())]
    glyphs = gather(_characters(lines, paper(image)))
    upright = sum(len(line["spans"]) * (1 - 2 * line["wmode"]) for line in lines)
    return visible(glyphs._replace(boxes=glyphs.boxes * scale), image, doubtful=upright < 0)


def _characters(lines: list[dict[str, Any]], ground: tuple[int, int, int]) -> Iterator[Character]:
    """Characters that are painted, with a break after each line."""
    for line in lines:
        for span in line["spans"]:
            if span["alpha"] >= CONTRAST and span["char_flags"] & _PAINTED:
                pale = is_pale(pymupdf.sRGB_to_rgb(span["color"]), ground)
                for char in span["chars"]:
                    yield char["c"], char["bbox"], pale
            else:
                yield BREAK
        yield BREAK
