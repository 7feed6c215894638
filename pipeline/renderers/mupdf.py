"""MuPDF: pages with the characters that it paints. It may crash or hang: call it only in a child."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple, TypedDict

import numpy as np

from data_specs.mupdf import mupdf, pymupdf
from data_specs.records import Box, Reason
from data_specs.sections import PageStyle
from pipeline.png import from_plane, in_one_plane, is_one_plane
from pipeline.renderers import UnreadableError, short
from pipeline.renderers.left_out import EVERY_TEXT, TextLeftOut
from pipeline.renderers.marks import CONTRAST, Marks, differ, intersecting, is_pale, overlapping_words, paper, unmarked
from pipeline.renderers.right_to_left import in_reading_order
from pipeline.renderers.words import (
    BREAK,
    GAP,
    UNKNOWN,
    Character,
    Page,
    ReadPage,
    Words,
    gather,
    page_scale,
    share_under,
    stands_for_itself,
    tracking,
    visible,
)

NAME = f"PyMuPDF {pymupdf.__version__}"
ERRORS = (RuntimeError, ValueError, IndexError, mupdf.FzErrorBase)
FLAGS = (
    pymupdf.TEXT_PRESERVE_WHITESPACE
    | pymupdf.TEXT_PRESERVE_LIGATURES
    | pymupdf.TEXT_ACCURATE_BBOXES
    | pymupdf.TEXT_IGNORE_ACTUALTEXT
)
WRITTEN_OVER = 0.05  # of a letter's height, between its left edge and that of a space, that is too little for one
DINGBATS = "Dingbats"  # part of the names of such fonts
EVERYWHERE = (-1e6, -1e6, 1e6, 1e6)
_INFINITE = mupdf.FzRect(mupdf.FzRect.Fixed_INFINITE)
_PAINTED = mupdf.FZ_STEXT_FILLED | mupdf.FZ_STEXT_STROKED


class Reading(NamedTuple):
    """How the text of a PDF's page is read, whose glyphs stand in any order: which replacements count (/ActualText),
    and which texts are left out, by their numbers."""

    replacements: frozenset[int] = frozenset()
    left_out: frozenset[int] = frozenset()


PLACED = Reading()


class RawCharacter(TypedDict):
    """A character in MuPDF's RAWDICT; `synthetic` where MuPDF has put a space there."""

    c: str
    bbox: Box
    synthetic: bool


class RawSpan(TypedDict):
    """Characters of one font and colour."""

    font: str
    color: int
    alpha: int
    char_flags: int
    chars: list[RawCharacter]


class RawLine(TypedDict):
    """A line: `wmode` is 1 where it runs from top to bottom."""

    spans: list[RawSpan]
    wmode: int


@contextmanager
def open_pdf(data: bytes) -> Iterator[tuple[int, ReadPage]]:
    """Open a PDF: its number of pages, and the function that renders one of them.

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


def _page(document: pymupdf.Document, number: int, style: PageStyle) -> Page:
    try:
        return _read_page(document, number, style)
    except mupdf.FzErrorSystem as error:  # its malloc gives nothing
        raise MemoryError(short(error)) from None


def _read_page(document: pymupdf.Document, number: int, style: PageStyle) -> Page:
    page = document[number]
    width, height = page.rect.width, page.rect.height
    scale = page_scale(width, height, style)
    drawing = page.get_displaylist()  # interpreted once, for the pictures and for the words
    image = draw(drawing, scale, grey=not is_coloured(drawing))
    ground, found = draw_without(drawing, scale, EVERY_TEXT, is_one_plane(image))
    marks = Marks(differ(image, ground))
    words = read(drawing, image, marks, scale, PLACED)
    if replacements := _needed(found, words, scale):
        words = read(drawing, image, marks, scale, Reading(replacements))
    if hidden := _hidden(drawing, found.bounds, words, image, scale):
        words = read(drawing, image, marks, scale, Reading(replacements, hidden))
    pictured = 0.0
    if not words.texts:
        pictures = pymupdf.TextPage(drawing.get_textpage(pymupdf.TEXT_PRESERVE_IMAGES)).extractIMGINFO()
        pictured = share_under((picture["bbox"] for picture in pictures), width * height)
    return Page(image, words, marks, bool(document.is_repaired), pictured)


def draw(drawing: pymupdf.DisplayList, scale: float, grey: bool = False) -> np.ndarray:
    """Draw a display list, uint8 [H, W, 3]; `grey` where nothing in it is coloured."""
    pixels = _pixels(drawing.get_pixmap(pymupdf.Matrix(scale, scale), pymupdf.csGRAY if grey else pymupdf.csRGB, 0))
    return from_plane(pixels[..., 0]) if grey else in_one_plane(pixels)


def is_coloured(drawing: pymupdf.DisplayList) -> bool:
    """Return whether a display list paints more than greys.

    A picture that may have colours counts as coloured, unseen.
    """
    told = mupdf.ll_fz_new_test_device_outparams()
    device = mupdf.FzDevice(mupdf.ll_fz_new_test_device_outparams_fn(0.0, 0, None, told))
    with suppress(mupdf.FzErrorAbort):  # it has seen enough
        mupdf.fz_run_display_list(drawing.this, device, mupdf.FzMatrix(), _INFINITE, mupdf.FzCookie())
    mupdf.fz_close_device(device)
    return bool(told.is_color)


def draw_without(
    drawing: pymupdf.DisplayList, scale: float, left_out: Container[int], grey: bool
) -> tuple[np.ndarray, TextLeftOut]:
    """Draw a display list without some of its texts, by their numbers; return also what was found of them."""
    matrix = mupdf.FzMatrix(scale, 0, 0, scale, 0, 0)
    area = mupdf.fz_transform_rect(mupdf.fz_bound_display_list(drawing.this), matrix)
    colours = mupdf.FzColorspace(pymupdf.csGRAY if grey else pymupdf.csRGB)
    pixmap = mupdf.fz_new_pixmap_with_bbox(colours, mupdf.fz_round_rect(area), mupdf.FzSeparations(), 0)
    mupdf.fz_clear_pixmap_with_value(pixmap, 255)
    device = TextLeftOut(mupdf.fz_new_draw_device(matrix, pixmap), left_out)
    device.run(drawing)
    pixels = _pixels(pymupdf.Pixmap("raw", pixmap))
    return from_plane(pixels[..., 0]) if grey else pixels, device


def _pixels(pixmap: pymupdf.Pixmap) -> np.ndarray:
    return np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, pixmap.n)


def read(
    drawing: pymupdf.DisplayList, image: np.ndarray, marks: Marks, scale: float, how: Reading | None = None
) -> Words:
    """Return the words that can be seen of a display list in its picture; `how` is None where Story has laid it out."""
    blocks = _text(drawing, FLAGS, how).extractRAWDICT()["blocks"]
    lines: list[RawLine] = [line for block in blocks for line in block.get("lines", ())]
    characters = list(_characters(lines, paper(image)))
    tight = tracking(characters) | _written_over(characters)
    parted = [char for number, char in enumerate(characters) if number not in tight]
    glyphs = gather(in_reading_order(parted, parted=False) if how else parted)
    upright = sum(len(line["spans"]) * (1 - 2 * line["wmode"]) for line in lines)
    return visible(glyphs._replace(boxes=glyphs.boxes * scale), marks, doubtful=upright < 0)


def read_known(drawing: pymupdf.DisplayList, marked: np.ndarray, scale: float, known: str) -> Words | None:
    """Return the words of text that is known, in a tenth of the time of `read`.

    Args:
        drawing: nothing but this text, in one colour.
        marked: where it leaves marks on its picture, bool [H, W].
        scale: pixels a point.
        known: all letters of the text in order, of which the display list has a part.

    Returns:
        What `read` gives; None where letters are not found as they are known, or are not ones that stand each for
        itself, or a word leaves no mark or the picture: what `read` is for.
    """
    words = _text(drawing, FLAGS).extractWORDS()
    texts = [word[4] for word in words]
    found = "".join(texts)
    if not found or found not in known or not all(map(stands_for_itself, set(found))):
        return None
    boxes = np.array([word[:4] for word in words]) * scale
    if boxes.min() < 0 or (boxes > (marked.shape * 2)[::-1]).any():
        return None
    if _has_unmarked(marked, boxes.astype(int).tolist()):
        return None
    return Words(texts, boxes, np.zeros(len(texts), bool), np.ones(len(texts), bool))


def _has_unmarked(marked: np.ndarray, boxes: list[list[int]]) -> bool:
    """Whether there is no mark in one of the boxes; most have one on the middle line, so that comes first."""
    pixels = marked.tobytes()
    width = marked.shape[1]
    lines = ((y0 + y1) // 2 * width for _, y0, _, y1 in boxes)
    bare = (box for box, line in zip(boxes, lines) if pixels.find(b"\1", line + box[0], line + box[2]) < 0)
    return not all(marked[y0:y1, x0:x1].any() for x0, y0, x1, y1 in bare)


def _needed(found: TextLeftOut, words: Words, scale: float) -> frozenset[int]:
    """Numbers of the replacements of letters that do not say themselves what they are.

    Of others the eye sees what they are, whatever a file wants them to be read as.
    """
    unknown = words.boxes[[UNKNOWN in text for text in words.texts]]
    boxes = np.array(found.bounds).reshape(-1, 4) * scale
    texts = (boxes[which.start : which.stop] for which in found.replaced) if len(unknown) else ()
    return frozenset(number for number, boxes in enumerate(texts) if intersecting(boxes, unknown))


def _hidden(
    drawing: pymupdf.DisplayList, texts: list[Box], words: Words, image: np.ndarray, scale: float
) -> frozenset[int]:
    """Numbers of the texts that stand where others do and leave no mark there: what was covered and written over."""
    doubtful = words.boxes[overlapping_words(words.texts, words.boxes)]
    if not len(doubtful):
        return frozenset()
    boxes = dict(enumerate(np.array(texts) * scale))
    grey = is_one_plane(image)
    near = {number: box for number, box in boxes.items() if intersecting(box[None], doubtful)}
    return frozenset(unmarked(near, image, lambda left_out: draw_without(drawing, scale, left_out, grey)[0]))


def is_clipped(drawing: pymupdf.DisplayList) -> bool:
    """Return whether characters of a display list are clipped away."""
    return len({_text(drawing, FLAGS | clip).extractText() for clip in (0, pymupdf.TEXT_CLIP)}) > 1


def _text(drawing: pymupdf.DisplayList, flags: int, how: Reading | None = None) -> pymupdf.TextPage:
    """Return the text of a display list, also what lies off the page."""
    everywhere = mupdf.FzRect(*EVERYWHERE)
    options = mupdf.FzStextOptions()
    options.flags = flags & ~pymupdf.TEXT_IGNORE_ACTUALTEXT if how and how.replacements else flags
    page = pymupdf.TextPage(everywhere)
    device = mupdf.fz_new_stext_device(page.this, options)
    if how and (how.left_out or how.replacements):
        TextLeftOut(device, how.left_out, how.replacements).run(drawing)
    else:
        mupdf.fz_run_display_list(drawing.this, device, mupdf.FzMatrix(), everywhere, mupdf.FzCookie())
        mupdf.fz_close_device(device)
    return page


def _characters(lines: list[RawLine], ground: tuple[int, int, int]) -> Iterator[Character]:
    """Characters that are painted, with a break after each line, and gaps where MuPDF sees the space between words.

    Of Zapf Dingbats it takes the names of glyphs, a20, for the numbers of letters.
    """
    for line in lines:
        for span in line["spans"]:
            if _is_painted(span["alpha"], span["char_flags"]):
                pale = is_pale(pymupdf.sRGB_to_rgb(span["color"]), ground)
                least = "\u0100" if DINGBATS in span["font"] else ""
                for char in span["chars"]:
                    text = char["c"] if char["c"] >= least else UNKNOWN
                    yield GAP if char["synthetic"] else (text, char["bbox"], pale)
            else:
                yield BREAK
        yield BREAK


def _written_over(characters: list[Character]) -> set[int]:
    """Numbers of the spaces at whose place the next letter begins: soft hyphens that are not seen, in some files."""
    spaces = (n for n, (char, _, _) in enumerate(characters[:-1]) if char == " ")
    return {n for n in spaces if _begin_together(characters[n][1], characters[n + 1])}


def _begin_together(space: Box, after: Character) -> bool:
    (left, top, right, bottom), (x0, y0, _, y1) = space, after[1]
    return top == bottom and left < right and abs(x0 - left) < WRITTEN_OVER * (y1 - y0)


def _is_painted(alpha: int, flags: int) -> bool:
    """Whether text is filled or outlined and not transparent, or the shape through which something else is seen."""
    return bool(flags & mupdf.FZ_STEXT_CLIPPED) or (alpha >= CONTRAST and bool(flags & _PAINTED))
