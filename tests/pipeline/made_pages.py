"""PDFs of one page, made by a seed: turned, cut, enlarged, with text that is seen and text that is not."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle

import pymupdf_fonts
from hostile_pdfs import FONT, pdf, stream

from data_specs.mupdf import pymupdf

WORDS = (
    "rendering",
    "pages",
    "from",
    "archives",
    "needs",
    "boxes",
    "that",
    "lie",
    "exactly",
    "upon",
    "the",
    "printed",
    "ink",
    "of",
    "every",
    "single",
    "word",
)
WIDTH, HEIGHT = 360, 260
BOXES = {
    "plain": (0, 0, b"/MediaBox [0 0 360 260]"),
    "moved": (-40, 70, b"/MediaBox [-40 70 320 330]"),
    "cropped": (100, 200, b"/MediaBox [0 0 700 600] /CropBox [100 200 460 460]"),
}
FEATURES = ("hyphen", "astral", "hidden", "doubled", "nested", "ligature")
TO_UNICODE = (
    b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def "
    b"1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfrange <20> <7E> <0020> endbfrange "
    b"3 beginbfchar <41> <D835DC00> <42> <D835DC01> <5D> <FB01> endbfchar endcmap end end"
)


@dataclass(frozen=True)
class Made:
    """A PDF of one page, and the words that are seen on it, in the order of painting."""

    name: str
    data: bytes
    words: list[str]


def made_pages() -> list[Made]:
    """Every rotation with every box and feature, all of them together on some."""
    features = cycle([(one,) for one in FEATURES] + [FEATURES])
    units = cycle([1, 1, 2, 1.5])
    pages = [(rotation, box) for rotation in (0, 90, 180, 270) for box in BOXES for _ in range(3)]
    return [make(number, *place, next(units), next(features)) for number, place in enumerate(pages)]


def make(seed: int, rotation: int, box: str, user_unit: float, features: tuple[str, ...]) -> Made:
    """One page: three lines of plain words, then what each feature adds."""
    rng, (left, bottom, boxes) = random.Random(seed), BOXES[box]
    lines = [rng.choices(WORDS, k=5) for _ in range(3)]
    content, words, top = list[bytes](), sum(lines, list[str]()), bottom + HEIGHT - 30
    for line in lines:
        content.append(_show(" ".join(line).encode(), left + 20, top))
        top -= 22
    for feature in features:
        more, seen = _FEATURES[feature](left + 20, top)
        content.append(more)
        words += seen
        top -= 22 * (2 if feature in ("hyphen", "hidden") else 1)
    leaf = b"<< /Type /Page /Parent 2 0 R %s /Rotate %d /UserUnit %g /Contents 4 0 R /Resources 6 0 R >>"
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R /OCProperties << /OCGs [7 0 R] /D << /OFF [7 0 R] >> >> >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        3: leaf % (boxes, rotation, user_unit),
        4: stream(b" ".join(content)),
        5: FONT,
        6: b"<< /Font << /F1 5 0 R /F2 8 0 R >> /Properties << /MC0 7 0 R >> /ExtGState << /G0 << /ca 0 >> >> "
        b"/XObject << /X0 10 0 R >> >>",
        7: b"<< /Type /OCG /Name (layer) >>",
        8: FONT[:-2] + b"/ToUnicode 9 0 R >>",
        9: stream(TO_UNICODE),
        **{10 + depth: _form(depth) for depth in range(4)},
    }
    name = f"{seed:02d}-{rotation}-{box}-{user_unit:g}-{'+'.join(features)}"
    return Made(name, pdf(objects), words)


def _show(text: bytes, x: float, y: float, font: bytes = b"F1", state: bytes = b"") -> bytes:
    return b"q %s BT /%s 14 Tf %g %g Td (%s) Tj ET Q" % (state, font, x, y, text)


def _form(depth: int) -> bytes:
    """A form that holds the next one, in another size and place, and at last words."""
    within = b"/Resources << /Font << /F1 5 0 R >> /XObject << /X0 %d 0 R >> >>" % (11 + depth)
    inner = _show(b"nested words", 0, 0) if depth == 3 else b"q 1.25 0 0 1.25 2 1 cm /X0 Do Q"
    return stream(inner, b"/Type /XObject /Subtype /Form /BBox [-9 -9 400 40] /Matrix [.8 0 0 .8 0 0] " + within)


def _hyphen(x: float, y: float) -> tuple[bytes, list[str]]:
    content = b"BT /F1 14 Tf 22 TL %g %g Td (of the exam-) Tj T* (ple line) Tj ET" % (x, y)
    return content, ["of", "the", "exam-", "ple", "line"]


def _astral(x: float, y: float) -> tuple[bytes, list[str]]:
    return _show(b"AB and B", x, y, b"F2"), ["\U0001d400\U0001d401", "and", "\U0001d401"]


def _ligature(x: float, y: float) -> tuple[bytes, list[str]]:
    return _show(b"]ne de]ned", x, y, b"F2"), ["fine", "defined"]


def _doubled(x: float, y: float) -> tuple[bytes, list[str]]:
    return _show(b"twice bold", x, y) + _show(b"twice bold", x + 0.3, y), ["twice", "bold"]


def _nested(x: float, y: float) -> tuple[bytes, list[str]]:
    return b"q 1 0 0 1 %g %g cm /X0 Do Q" % (x, y), ["nested", "words"]


def _hidden(x: float, y: float) -> tuple[bytes, list[str]]:
    content = [
        _show(b"hiddenmode", x, y, state=b"3 Tr"),
        _show(b"hiddenwhite", x + 90, y, state=b"1 g"),
        b"/OC /MC0 BDC " + _show(b"hiddenlayer", x + 180, y) + b" EMC",
        _show(b"hiddenalpha", x + 270, y, state=b"/G0 gs"),
        _show(b"hiddenclip", x, y, state=b"%g %g 9 9 re W n" % (x, y + 40)),
        _show(b"hiddenoff", x + 500, y),
        _show(b"hiddenover", x, y - 22) + b"q 1 g %g %g 90 20 re f Q" % (x - 5, y - 27),
        _show(b"under the visible", x, y),
        b"/OC /MC0 BDC " + _show(b"layer on the place", x, y) + b" EMC",
        _show(b"alpha on the place", x, y, state=b"/G0 gs"),
        b"q %g %g 99 9 re W n 0 0 1 1 re W n " % (x, y) + _show(b"clipped from place", x, y) + b" Q",
    ]
    return b" ".join(content), ["under", "the", "visible"]


_FEATURES = {
    "hyphen": _hyphen,
    "astral": _astral,
    "hidden": _hidden,
    "doubled": _doubled,
    "nested": _nested,
    "ligature": _ligature,
}


def vertical() -> bytes:
    """A page of a CID font in vertical writing."""
    font = pymupdf_fonts.myfont("notos")
    glyphs = {letter: pymupdf.Font(fontbuffer=font).has_glyph(ord(letter)) for letter in "abcdefgh"}
    cmap = b" ".join(b"<%04X> <%04X>" % (glyph, ord(letter)) for letter, glyph in glyphs.items())
    text = b"".join(b"%04X" % glyph for glyph in glyphs.values())
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        4: stream(b"BT /F1 16 Tf 100 190 Td <%s> Tj -30 0 Td <%s> Tj ET" % (text, text)),
        5: b"<< /Type /Font /Subtype /Type0 /BaseFont /Noto /Encoding /Identity-V "
        b"/DescendantFonts [6 0 R] /ToUnicode 9 0 R >>",
        6: b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Noto /CIDToGIDMap /Identity /FontDescriptor 7 0 R "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>",
        7: b"<< /Type /FontDescriptor /FontName /Noto /Flags 4 /FontBBox [0 -300 1000 1000] /ItalicAngle 0 "
        b"/Ascent 1000 /Descent -300 /CapHeight 700 /StemV 80 /FontFile2 8 0 R >>",
        8: stream(font, b"/Length1 %d" % len(font)),
        9: stream(
            b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def "
            b"1 begincodespacerange <0000> <FFFF> endcodespacerange %d beginbfchar %s endbfchar endcmap end end"
            % (len(glyphs), cmap)
        ),
    }
    return pdf(objects)
