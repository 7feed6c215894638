"""Rich text: passages of plain text, Markdown or HTML, laid out by MuPDF's Story with a style sheet of the spec's.

After the paper's Text-Image (section 4): at most 100 words with a margin on a square. Structure is the document's own;
fonts, sizes, colours, alignment, columns and margins are the spec's. MuPDF brings its own HarfBuzz and bidi algorithm.
"""

from __future__ import annotations

import html
import random
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from markdown_it import MarkdownIt
from PIL import ImageColor

from data_specs.mupdf import mupdf, pymupdf
from data_specs.records import Reason
from data_specs.sections import TextStyle
from pipeline.renderers import NoPicture, Picture
from pipeline.renderers.fonts import characters, has_glyph, name_in_css, regular
from pipeline.renderers.marks import Marks, differ
from pipeline.renderers.mupdf import draw, is_clipped, read, read_known
from pipeline.renderers.words import Words

Format = Literal["plain", "markdown", "html"]
SHEET = """
body {{margin: 0; font-family: {family}; font-size: {size}px; line-height: {line}px; color: {colour};
       font-weight: {weight}; font-style: {slant}; {alignment}}}
h1, h2, h3, h4, h5, h6 {{color: {accent}; line-height: 1.2; margin: 0.5em 0 0.3em 0}}
h1 {{font-size: 1.5em}} h2 {{font-size: 1.3em}} h3 {{font-size: 1.15em}} h4, h5, h6 {{font-size: 1em}}
p, ul, ol, pre, table, blockquote {{margin: 0 0 0.5em 0}}
li p {{margin: 0}} blockquote {{margin-left: 1em}}
pre, code {{font-family: {code}}} pre {{white-space: pre-wrap; line-height: 1.2; text-align: left}}
a {{color: {accent}}}
th, td {{border: 1px solid {colour}; padding: 0.15em 0.3em; text-align: left}}
"""
CONTROLS = {n: None for n in range(0xA0) if unicodedata.category(chr(n)) == "Cc" and not chr(n).isspace()}
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GRID = """
h1, h2, h3, h4, h5, h6 {{font-size: 1em; line-height: {line}px; margin: 0}}
p, ul, ol, pre, table, blockquote {{margin: 0}} ul, ol {{padding-left: {size}px}}
"""  # with letters of whole pixels: every line on the same grid


IDEOGRAPHS = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff"
BREAKS = re.compile(
    rf"(?<=[-‐–—/?!…|}}])(?=[^\W\d_])|(?=[{IDEOGRAPHS}])|(?<=[{IDEOGRAPHS}])"
)  # where Story breaks words


class Sheet(NamedTuple):
    """How one passage is drawn; lengths are in pixels of the canvas."""

    css: str
    font: pymupdf.Font  # to measure words with
    size: int
    colours: set[tuple[int, ...]]
    background: tuple[int, ...]
    columns: list[pymupdf.Rect]


def render_text(
    text: str, document_id: str, style: TextStyle, seed: int, canvas: int, size: int, form: Format = "plain"
) -> Iterator[Picture | NoPicture]:
    """Yield the pictures of a passage, at most style.max_images of them, in order.

    What does not fit goes on on the next.

    All chances are functions of (seed, document). A character that no font has makes one NoPicture, never an empty box;
    a plain passage ends before a word that is wider than its column.

    Args:
        canvas: side of what is laid out, in the pixels of the spec's sizes and margins.
        size: side of a picture, pixels; it is drawn at that size.
    """
    text = unicodedata.normalize("NFC", text.translate(CONTROLS))
    if fault := _fault(text):
        yield fault
        return
    sheet = _sheet(style, random.Random(f"{seed}/{document_id}"), text, form, canvas, canvas / size)
    pieces = _pieces(text, style.max_words, sheet) if form == "plain" else iter([text])
    pages = (page for piece in pieces for page in _pages(piece, form, sheet, canvas))
    known = text.split() if form == "plain" else []
    number = -1
    for number, drawing in zip(range(style.max_images), pages):
        image, words = _drawn(drawing, sheet, size / canvas, known)
        suffix = f"-{number}" if style.max_images > 1 else ""
        yield Picture(suffix, image, {**words.fields(1.0), "box": (0, 0, canvas, canvas)})
    if number < 0:
        yield NoPicture("", Reason.DOES_NOT_FIT, text.split()[0][:80])


def _fault(text: str) -> NoPicture | None:
    if not text.strip():
        return NoPicture("", Reason.NO_TEXT)
    doubtful = {c for c in set(text) if not c.isspace() and not has_glyph(c)}
    letter = ""
    for char in text if doubtful else "":
        if char in doubtful and not (letter and has_glyph(char, letter)):
            return NoPicture("", Reason.NO_FONT, f"U+{ord(char):04X}")
        letter = char if char.isalpha() else letter
    return None


def _sheet(style: TextStyle, rng: random.Random, text: str, form: Format, canvas: int, pixel: float) -> Sheet:
    """Draw the choices for one passage; `pixel` is the side of a pixel of the picture on the canvas."""
    letters = {ord(c) for c in set(text) if c.isalpha()}
    family = rng.choice([f for f in style.fonts if letters <= characters(f)] or style.fonts)
    code = rng.choice(style.code_fonts)
    size = rng.randint(*style.sizes)
    weight = rng.choice(style.weights)
    colour = rng.choice(style.colours)
    accent = rng.choice(style.colours)
    background = rng.choice(style.backgrounds)
    alignment = rng.choice(style.alignments)
    margin = rng.randint(*style.margins)
    number = rng.choice(style.columns)
    line = round(size * style.line_spacing / pixel) * pixel if style.whole_pixels else size * style.line_spacing
    whole = size / pixel if style.whole_pixels else None
    css = (SHEET + GRID * style.whole_pixels).format(
        family=name_in_css(family, whole),
        code=name_in_css(code, whole),
        size=size,
        line=line,
        colour=colour,
        accent=accent,
        weight="bold" if weight == "bold" else "normal",
        slant="italic" if weight == "italic" else "normal",
        alignment="" if alignment == "left" else f"text-align: {alignment.replace('centre', 'center')}",
    )
    colours: set[tuple[int, ...]] = {ImageColor.getrgb(name) for name in (colour, accent)}
    columns = _columns(canvas, margin, number, size)
    return Sheet(css, regular(family, whole), size, colours, ImageColor.getrgb(background), columns)


def _columns(canvas: int, margin: int, number: int, gap: int) -> list[pymupdf.Rect]:
    """So many columns side by side within a margin."""
    width = (canvas - 2 * margin - (number - 1) * gap) / number
    lefts = (margin + n * (width + gap) for n in range(number))
    return [pymupdf.Rect(left, margin, left + width, canvas - margin) for left in lefts]


def _pieces(text: str, max_words: int, sheet: Sheet) -> Iterator[str]:
    """Divide a plain passage, up to a word that no line can hold, into pieces of at most so many words."""
    words = text.split()
    size = sheet.size
    width = sheet.columns[0].width
    long = (n for n, word in enumerate(words) if len(word) * size > width)  # letters are at most as wide as high
    wide = next((n for n in long if _widest_part(words[n], sheet.font) * size > width), None)
    if wide is None and len(words) <= max_words:
        yield text.strip()
        return
    spans = [match.span() for match in re.finditer(r"\S+", text)][:wide]
    for start in range(0, len(spans), max_words):
        last = spans[start : start + max_words][-1]
        yield text[spans[start][0] : last[1]]


def _widest_part(word: str, font: pymupdf.Font) -> float:
    """Width, in type sizes, of the widest of the parts between which a word can be broken."""
    return max(sum(_advance(font, char) for char in part) for part in BREAKS.split(word))


@lru_cache(maxsize=1 << 14)
def _advance(font: pymupdf.Font, char: str) -> float:
    return float(font.glyph_advance(ord(char)))


def _pages(piece: str, form: Format, sheet: Sheet, canvas: int) -> Iterator[pymupdf.DisplayList]:
    """Lay out a piece on as many canvases as it takes; where something is wider than a column, in one column."""
    story = pymupdf.Story(html=_html(piece, form), user_css=sheet.css)
    columns = sheet.columns
    if len(columns) > 1:
        clipped = any(is_clipped(drawing) for drawing in _canvases(story, columns, canvas))
        columns = [columns[0] | columns[-1]] if clipped else columns
        story.reset()
    yield from _canvases(story, columns, canvas)


def _canvases(story: pymupdf.Story, columns: list[pymupdf.Rect], canvas: int) -> Iterator[pymupdf.DisplayList]:
    """Yield canvases of what is left of a story, until nothing more can be placed."""
    more = placed = True
    while more and placed:
        drawing = pymupdf.DisplayList(mupdf.FzRect(0, 0, canvas, canvas))
        device = mupdf.fz_new_list_device(drawing.this)
        placed = False
        for column in columns:
            if more:
                more, filled = story.place(column)
                placed = placed or filled[3] > filled[1]
                mupdf.fz_draw_story(story.this, device, mupdf.FzMatrix())
        mupdf.fz_close_device(device)
        if placed:
            yield drawing


def _html(piece: str, form: Format) -> str:
    """Return a passage as HTML without pictures; it runs from right to left where its first letter does."""
    if form == "plain":
        paragraphs = (html.escape(part) for part in re.split(r"\n\s*\n", piece))
        body = "".join(f"<p>{part}</p>" for part in paragraphs)
    else:
        body = re.sub(r"(?i)<img\b[^>]*>", "", piece if form == "html" else _markdown().render(piece))
    body = re.sub(r"(?i)&(amp|#0*38|#x0*26);", "&amp;amp;", body)  # MuPDF takes a text's entities for such once more
    first = next((way for way in map(unicodedata.bidirectional, piece) if way in ("L", "R", "AL")), "L")
    return body if form == "html" else f'<body dir="{"ltr" if first == "L" else "rtl"}">{body}</body>'


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def _drawn(drawing: pymupdf.DisplayList, sheet: Sheet, scale: float, known: list[str]) -> tuple[np.ndarray, Words]:
    """Draw a canvas on its background, uint8 [size, size, 3], and find the words that can be seen in it.

    Args:
        known: the words of the whole passage where it is plain, else none.
    """
    if sheet.background == WHITE:
        image = draw(drawing, scale, grey=bool(known) and sheet.colours == {BLACK})
    else:
        pixmap = drawing.get_pixmap(pymupdf.Matrix(scale, scale), pymupdf.csRGB, alpha=1)
        pixels = np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 4)
        paper = np.array(sheet.background, np.uint16) * (255 - pixels[..., 3:].astype(np.uint16))
        image = pixels[..., :3] + ((paper + 127) // 255).astype(np.uint8)
    marked = differ(image, sheet.background)
    words = read_known(drawing, marked, scale, "".join(known)) if known else None
    return image, words or read(drawing, image, Marks(marked), scale).joined_as(known)
