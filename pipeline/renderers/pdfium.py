"""PDFium: pages with the characters that it finds, put where the page shows them. Call it only in a child."""

from __future__ import annotations

import ctypes
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import pypdfium2
from pypdfium2 import raw

from data_specs.records import Box, Reason
from data_specs.sections import PageStyle
from pipeline.png import in_one_plane
from pipeline.renderers import UnreadableError, short
from pipeline.renderers.marks import Marks, around_each, differ, is_pale, overlapping_words, paper, unmarked
from pipeline.renderers.right_to_left import in_reading_order
from pipeline.renderers.words import (
    BREAK,
    GAP,
    UNKNOWN,
    UNTRUSTED,
    Character,
    Page,
    ReadPage,
    Words,
    gather,
    letters,
    page_scale,
    share_under,
    tracking,
    visible,
)

NAME = f"pypdfium2 {pypdfium2.version.PYPDFIUM_INFO}"
ERRORS = (pypdfium2.PdfiumError, ValueError)
DEPTH = 40  # forms within forms that PDFium draws, and that are looked into
_REPLACEMENT = b"ActualText"
_USER_UNIT = re.compile(rb"/UserUnit\s*([0-9.]+)")
_STREAM = re.compile(rb"stream\r?\n.*?endstream", re.DOTALL)
FINE = 1 << 20  # device units per side, where PDFium gives whole numbers


class _Text(NamedTuple):
    """A text object that is painted: its place in the order of painting, its handle, whether it has the paper's own
    colour, whether its letters stand upright in the page's space, and whether they are a shape to see through."""

    rank: int
    handle: raw.FPDF_PAGEOBJECT | None
    pale: bool
    upright: bool
    clips: bool


_Placed = tuple[_Text, Character]
_NO_TEXT = _Text(0, None, False, False, False)


@contextmanager
def open_pdf(data: bytes) -> Iterator[tuple[int, ReadPage]]:
    """Open a PDF: its number of pages, and the function that renders one of them.

    Raises:
        UnreadableError: it cannot be opened, or is encrypted.
    """
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        locked = error.err_code == raw.FPDF_ERR_PASSWORD
        raise UnreadableError(Reason.ENCRYPTED if locked else Reason.UNREADABLE, short(error)) from None
    with document:
        yield len(document), partial(_page, document)


def _page(document: pypdfium2.PdfDocument, number: int, style: PageStyle) -> Page:
    page = document[number]
    if raw.FPDFPage_GetAnnotCount(page):
        raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)  # what annotations say is text of the page then
        page = document[number]
    width, height = page.get_size()
    unit = _user_unit(document, number)
    scale = page_scale(width * unit, height * unit, style) * unit
    image = _draw(page, scale)
    ground = paper(image)
    texts = _texts(page, ground)
    _take_replacements(page, [one.handle for one in texts.values()])
    marks = _marks(page, list(texts.values()), image, ground, scale)
    words = _words(page, texts, image, marks, scale)
    pictured = 0.0
    if not words.texts:
        pictures = page.get_objects(filter=(raw.FPDF_PAGEOBJ_IMAGE,), max_depth=DEPTH)
        pictured = share_under((picture.get_bounds() for picture in pictures), width * height)
    return Page(image, words, marks, False, pictured)


def _user_unit(document: pypdfium2.PdfDocument, number: int) -> float:
    """Return the size of a page's unit in points. PDFium ignores it and does not report it, but copies it."""
    copy = pypdfium2.PdfDocument.new()
    file = io.BytesIO()
    copy.import_pages(document, [number])
    copy.save(file)
    copy.close()
    found = _USER_UNIT.search(_STREAM.sub(b"", file.getvalue())) if b"/UserUnit" in file.getvalue() else None
    return (float(found[1]) if found else 0) or 1.0


def _marks(
    page: pypdfium2.PdfPage, texts: list[_Text], image: np.ndarray, ground: tuple[int, int, int], scale: float
) -> Marks:
    """Return the marks of text; under transparent shapes, whose hole PDFium draws even without them, all marks."""
    marked = differ(image, _draw_without(page, [one.handle for one in texts], scale))
    for one in texts:
        if one.clips:
            [(x0, y0, x1, y1)] = _shown(page, np.array([_bounds(one.handle)]), image).clip(0).astype(int).tolist()
            area = slice(y0, y1 + 1), slice(x0, x1 + 1)
            marked[area] |= differ(image[area], ground)
    return Marks(marked)


def _bounds(handle: raw.FPDF_PAGEOBJECT) -> Box:
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    raw.FPDFPageObj_GetBounds(handle, left, bottom, right, top)
    return left.value, bottom.value, right.value, top.value


def _draw(page: pypdfium2.PdfPage, scale: float) -> np.ndarray:
    bitmap = page.render(scale=scale, rev_byteorder=True)
    return in_one_plane(np.ascontiguousarray(bitmap.to_numpy()[..., :3]))


def _draw_without(page: pypdfium2.PdfPage, left_out: list[raw.FPDF_PAGEOBJECT], scale: float) -> np.ndarray:
    """Draw a page without some of its objects."""
    for handle in left_out:
        raw.FPDFPageObj_SetIsActive(handle, False)
    image = _draw(page, scale)
    for handle in left_out:
        raw.FPDFPageObj_SetIsActive(handle, True)
    return image


def _words(page: pypdfium2.PdfPage, texts: dict[int, _Text], image: np.ndarray, marks: Marks, scale: float) -> Words:
    text = page.get_textpage()
    characters = list(_characters(text, texts))
    tight = tracking([char for _, char in characters])
    runs = _runs(one for number, one in enumerate(characters) if number not in tight)
    hidden = _hidden(page, runs, image, scale)
    seen = [[char for one, char in run if one.rank not in hidden] + [BREAK] for run in runs]
    found = [char for run in seen for char in run]
    boxes = _shown(page, np.array([box for _, box, _ in found]).reshape(-1, 4), image).tolist()
    shown = [char if char is BREAK else (char[0], tuple(box), char[2]) for char, box in zip(found, boxes, strict=True)]
    doubtful = _run_down(runs) or _guesses(text)
    return visible(gather(in_reading_order(shown, parted=True)), marks, doubtful)


def _hidden(page: pypdfium2.PdfPage, runs: list[list[_Placed]], image: np.ndarray, scale: float) -> set[int]:
    """Ranks of the text objects of words that share their place with others, and leave no mark there."""
    if not runs:
        return set()
    placed = [one for run in runs for one in run]
    boxes = _shown(page, np.array([box for _, (_, box, _) in placed]), image)
    starts = np.cumsum([0, *map(len, runs[:-1])])
    words = ["".join(char for _, (char, _, _) in run) for run in runs]
    doubtful = overlapping_words(words, around_each(boxes, starts))
    handles = {one.rank: one.handle for number in doubtful for one, _ in runs[number]}
    ranks = np.array([one.rank for one, _ in placed])
    whole = {rank: around_each(boxes[ranks == rank], [0])[0] for rank in handles}
    return unmarked(whole, image, lambda left_out: _draw_without(page, [handles[rank] for rank in left_out], scale))


def _guesses(text: pypdfium2.PdfTextPage) -> bool:
    """Whether fonts do not say what some of their letters are; PDFium takes the bytes for letters then."""
    count = raw.FPDFText_CountChars(text)
    return bool(sum(raw.FPDFText_HasUnicodeMapError(text, n) == 1 for n in range(count)) > UNTRUSTED * count)


def _texts(page: pypdfium2.PdfPage, ground: tuple[int, int, int]) -> dict[int, _Text]:
    """Return the page's text objects that are painted, by address."""
    found = page.get_objects(filter=(raw.FPDF_PAGEOBJ_TEXT,), max_depth=DEPTH)
    modes = [(one.raw, raw.FPDFTextObj_GetTextRenderMode(one.raw)) for one in found]
    painted = [(handle, mode) for handle, mode in modes if mode != raw.FPDF_TEXTRENDERMODE_INVISIBLE]
    texts = dict[int, _Text]()
    for rank, (handle, mode) in enumerate(painted):
        pale = is_pale(_colour(handle, outline=mode == raw.FPDF_TEXTRENDERMODE_STROKE), ground)
        clips = mode == raw.FPDF_TEXTRENDERMODE_CLIP
        texts[_address(handle)] = _Text(rank, handle, pale, _is_upright(handle), clips)
    return texts


def _take_replacements(page: pypdfium2.PdfPage, handles: list[raw.FPDF_PAGEOBJECT]) -> None:
    """Remove from texts the replacements that a file gives (/ActualText) where their letters say what they are."""
    marks = [(handle, mark, value) for handle in handles for mark, value in _replacements(handle)]
    for handle, mark, _ in marks:
        raw.FPDFPageObjMark_RemoveParam(handle, mark, _REPLACEMENT)
    if not marks:
        return
    text = page.get_textpage()
    numbers = range(raw.FPDFText_CountChars(text))
    unknown = {_address(raw.FPDFText_GetTextObject(text, n)) for n in numbers if _is_unknown(text, n)}
    for handle, mark, value in marks:
        if _address(handle) in unknown:
            raw.FPDFPageObjMark_SetBlobParam(page.pdf, handle, mark, _REPLACEMENT, value, len(value))


def _is_unknown(text: pypdfium2.PdfTextPage, index: int) -> bool:
    return raw.FPDFText_HasUnicodeMapError(text, index) == 1 or letters(_letter(text, index)) == UNKNOWN


def _replacements(
    handle: raw.FPDF_PAGEOBJECT,
) -> Iterator[tuple[raw.FPDF_PAGEOBJECTMARK, ctypes.Array[ctypes.c_ubyte]]]:
    """Yield the marks of a text object that replace its text, and the replacement as a PDF writes it."""
    for number in range(raw.FPDFPageObj_CountMarks(handle)):
        mark = raw.FPDFPageObj_GetMark(handle, number)
        size = ctypes.c_ulong()
        raw.FPDFPageObjMark_GetParamStringValue(mark, _REPLACEMENT, None, 0, size)
        if size.value:
            found = (ctypes.c_ushort * (size.value // 2))()
            raw.FPDFPageObjMark_GetParamStringValue(mark, _REPLACEMENT, found, size, size)
            text = bytes(found)[:-2].decode("utf-16-le").encode("utf-16-be")
            value = b"\xfe\xff" + text
            yield mark, (ctypes.c_ubyte * len(value)).from_buffer_copy(value)


def _address(handle: raw.FPDF_PAGEOBJECT) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _colour(handle: raw.FPDF_PAGEOBJECT, outline: bool) -> tuple[int, int, int]:
    """Return the colour of a text object, or of its outline."""
    red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
    (raw.FPDFPageObj_GetStrokeColor if outline else raw.FPDFPageObj_GetFillColor)(handle, red, green, blue, alpha)
    return red.value, green.value, blue.value


def _is_upright(handle: raw.FPDF_PAGEOBJECT) -> bool:
    matrix = raw.FS_MATRIX()
    raw.FPDFPageObj_GetMatrix(handle, matrix)
    return bool(matrix.a > abs(matrix.b))


def _shown(page: pypdfium2.PdfPage, boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Boxes of the page's own space as pixels of its picture: turned, cut and enlarged as it is shown."""
    origin, right, up = (_device(page, *point) for point in ((0, 0), (1000, 0), (0, 1000)))
    matrix = np.array([right - origin, up - origin]) / 1000
    height, width = image.shape[:2]
    corners = np.stack([boxes[:, [0, 1]], boxes[:, [2, 3]]])
    points = (corners @ matrix + origin) * (width, height) / FINE
    return np.concatenate([points.min(axis=0), points.max(axis=0)], axis=1)


def _device(page: pypdfium2.PdfPage, x: float, y: float) -> np.ndarray:
    column = ctypes.c_int()
    row = ctypes.c_int()
    raw.FPDF_PageToDevice(page, 0, 0, FINE, FINE, 0, x, y, column, row)
    return np.array([column.value, row.value], dtype=np.float64)


def _characters(text: pypdfium2.PdfTextPage, texts: dict[int, _Text]) -> Iterator[_Placed]:
    """Yield painted characters with their text objects; a break between words, and for what is not painted."""
    high = ""
    for index in range(raw.FPDFText_CountChars(text)):
        one = texts.get(_address(raw.FPDFText_GetTextObject(text, index)))
        if raw.FPDFText_IsGenerated(text, index) == 1:
            yield _NO_TEXT, GAP if raw.FPDFText_GetUnicode(text, index) == ord(" ") else BREAK
            continue
        if one is None:
            yield _NO_TEXT, BREAK
            continue
        char = _letter(text, index)
        if "\ud800" <= char < "\udc00":  # the first half of a character beyond the BMP
            high = char
            continue
        char = (high + char).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        high = ""
        yield one, (char, _box(text, index), one.pale)
        if raw.FPDFText_IsHyphen(text, index) == 1:
            yield _NO_TEXT, BREAK


def _letter(text: pypdfium2.PdfTextPage, index: int) -> str:
    if raw.FPDFText_IsHyphen(text, index) == 1:
        return "-"  # PDFium has a code of its own for one at a line's end
    char = chr(raw.FPDFText_GetUnicode(text, index))
    return UNKNOWN if raw.FPDFText_HasUnicodeMapError(text, index) == 1 and not char.isprintable() else char


def _box(text: pypdfium2.PdfTextPage, index: int) -> Box:
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    raw.FPDFText_GetCharBox(text, index, left, right, bottom, top)
    return left.value, bottom.value, right.value, top.value


def _runs(characters: Iterator[_Placed]) -> list[list[_Placed]]:
    """Words in the order in which they are painted: PDFium puts those of a line in another order on turned pages."""
    runs = [list[_Placed]()]
    for one in characters:
        if one[1][0].isspace():
            runs.append([])
        elif runs[-1] and one[1][1] == runs[-1][-1][1][1]:  # a glyph of several characters, each with its box
            text, (chars, box, pale) = runs[-1].pop()
            runs[-1].append((text, (chars + one[1][0], box, pale)))
        else:
            runs[-1].append(one)
    return sorted(filter(None, runs), key=lambda run: run[0][0].rank)


def _run_down(runs: list[list[_Placed]]) -> bool:
    """Whether most words of upright letters are written from top to bottom."""
    pairs = [(run[0][1][1], run[1][1][1]) for run in runs if len(run) > 1 and run[0][0].upright]
    return sum(below[3] <= above[1] for above, below in pairs) * 2 > len(pairs)
