"""Text counts where it leaves a mark: not under a later picture or colour, behind a mask, or in its ground's colour;
and what is light, thin, tiny or a shape to see through does. With either engine."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hostile_pdfs import page, stream

from data_specs.mupdf import pymupdf
from data_specs.sections import PageStyle
from pipeline.png import is_one_plane
from pipeline.renderers import mupdf
from pipeline.renderers.marks import OVERLAP, overlap, overlapping_words
from pipeline.renderers.pages import ENGINES
from pipeline.renderers.words import Page
from pipeline.truth import count_ink

both = pytest.mark.parametrize("engine", ENGINES)
PLACE = b"35 94 120 24"
OVER = b"q 120 0 0 24 35 94 cm /I Do Q "
_MASK = b"/Type /XObject /Subtype /Form /BBox [0 0 300 200] /Group << /S /Transparency /CS /DeviceGray >>"
_FORM = b"/Type /XObject /Subtype /Form /BBox [0 -10 200 40] /Group << /S /Transparency >> "
_SHADE = b"<< /ShadingType 2 /ColorSpace /DeviceRGB /Coords [0 0 300 0] /Extend [true true] /Function "
_IMAGE = b"/Type /XObject /Subtype /Image /Width 40 /Height 20 /BitsPerComponent 8 /ColorSpace /DeviceRGB"
OBJECTS = {
    10: stream(random.Random(0).randbytes(2400), _IMAGE),
    11: stream(b"0 g 0 0 300 200 re f", _MASK),
    12: stream(b"1 g 0 0 300 90 re f", _MASK),
    13: stream(b"BT /F1 12 Tf 0 0 Td (masked form) Tj ET", _FORM + b"/Resources << /Font << /F1 5 0 R >> >>"),
    14: _SHADE + b"<< /FunctionType 2 /Domain [0 1] /C0 [1 0 0] /C1 [0 0 1] /N 1 >> >>",
}
RESOURCES = (
    b"/XObject << /I 10 0 R /M 13 0 R >> /Shading << /Sh 14 0 R >> /ExtGState << "
    b"/Zero << /SMask << /S /Luminosity /G 11 0 R >> >> /Half << /SMask << /S /Luminosity /G 12 0 R >> >> "
    b"/Thin << /ca .3 /CA .3 >> /None << /ca 0 /CA 0 >> /Times << /BM /Multiply >> >>"
)


def show(text: bytes, state: bytes = b"", size: float = 12, y: float = 100) -> bytes:
    """Words at one place, in a graphics state of their own."""
    return b"q %s BT /F1 %g Tf 40 %g Td (%s) Tj ET Q " % (state, size, y, text)


def read(content: bytes, engine: str, dpi: float = 100) -> Page:
    """The page that a content stream makes."""
    with ENGINES[engine].open_pdf(page(content, resources=RESOURCES, more=OBJECTS)) as (_, read_page):
        return read_page(0, PageStyle(dpi=dpi))


def seen(content: bytes, engine: str) -> str:
    """The words of a page; those that are cut end in a bar."""
    words = read(content, engine).words
    return " ".join(text + "|" * cut for text, cut in zip(words.texts, words.cut.tolist(), strict=True))


HIDDEN = {
    "under a picture": show(b"hidden words") + OVER,
    "under the paper's colour": show(b"hidden words") + b"q 1 g " + PLACE + b" re f Q ",
    "under another colour": show(b"hidden words") + b"q 0 0 1 rg " + PLACE + b" re f Q ",
    "under a shading": show(b"hidden words") + b"q " + PLACE + b" re W n /Sh sh Q ",
    "under a scan": show(b"hidden words") + b"q 300 0 0 80 0 80 cm /I Do Q ",
    "behind a mask of zero": show(b"hidden words", b"/Zero gs"),
    "behind a mask on a picture": OVER + show(b"hidden words", b"/Zero gs"),
    "behind half a mask": show(b"hidden words", b"/Half gs"),
    "a form behind a mask": b"q 1 0 0 1 40 100 cm /Zero gs /M Do Q ",
    "transparent on a picture": OVER + show(b"hidden words", b"/None gs"),
    "black on black": PLACE + b" re f " + show(b"hidden words"),
    "a shape that shows nothing": b"q BT /F1 24 Tf 7 Tr 40 97 Td (Window) Tj ET Q ",
    "a shape that shows the paper": b"q BT /F1 24 Tf 7 Tr 40 97 Td (Window) Tj ET 1 g 0 0 300 200 re f Q ",
}
SEEN = {
    "on a picture": OVER + show(b"two words", b"1 g"),
    "under half a picture's opacity": show(b"two words") + b"q /Thin gs" + OVER[1:],
    "under a marker": show(b"two words") + b"q /Times gs 1 1 0 rg " + PLACE + b" re f Q ",
    "white on black": PLACE + b" re f " + show(b"two words", b"1 g"),
    "light grey": show(b"two words", b".85 g"),
    "tiny and grey": show(b"two words", b".7 g", 3.5),
    "nearly transparent": show(b"two words", b"/Thin gs"),
    "an outline": show(b"two words", b".1 w 1 Tr"),
    "a shape with a picture in it": b"q BT /F1 24 Tf 7 Tr 40 97 Td (two words) Tj ET " + OVER + b"Q ",
    "filled and a shape": b"q BT /F1 24 Tf 4 Tr 40 97 Td (two words) Tj ET " + OVER + b"Q ",
    "written over what a colour covers": show(b"hidden text") + b"q 1 g " + PLACE + b" re f Q " + show(b"two words"),
    "written over what a picture covers": show(b"hidden text") + OVER + show(b"two words", b"1 g"),
    "spaced letters": show(b"two words", b"3 Tc", 10),
    "widely spaced letters": show(b"two words", b"6 Tc", 10),
}


@both
@pytest.mark.parametrize("name", HIDDEN)
def test_text_without_a_mark_does_not_count(name: str, engine: str) -> None:
    assert seen(HIDDEN[name] + show(b"below", y=50), engine) == "below"


@both
@pytest.mark.parametrize("name", SEEN)
def test_text_with_a_mark_counts(name: str, engine: str) -> None:
    assert seen(SEEN[name], engine) == "two words"


@both
@pytest.mark.parametrize("dpi", [40, 72, 200])
def test_thin_and_tiny_text_counts_at_any_size(dpi: float, engine: str) -> None:
    made = read(show(b"light grey words", b".8 g", 6) + show(b"small print", size=3, y=50) + OVER, engine, dpi)
    assert made.words.texts == ["small", "print"]
    made = read(show(b"light grey words", b".8 g", 6) + show(b"small print", size=3, y=50), engine, dpi)
    assert made.words.texts == ["light", "grey", "words", "small", "print"]
    assert count_ink(made.image, made.words.boxes).num_words == 5


@both
def test_a_word_that_is_half_covered_is_cut(engine: str) -> None:
    assert seen(show(b"covered words") + b"q 1 g 35 94 30 24 re f Q ", engine) == "covered| words"


@both
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"(w o r d and)", "w o r d and"),
        (b"(one) Tj 40 0 Td (two)", "one two"),
        (b"(1) Tj 9 0 Td (2) Tj 9 0 Td (3) Tj 9 0 Td (4)", "1 2 3 4"),
        (b"(w) Tj 7.22 0 Td (o) Tj 5.56 0 Td (r) Tj 3.33 0 Td (d)", "word"),
        (b"(l) Tj 7 0 Td (i) Tj 7 0 Td (s) Tj 9.7 0 Td (t) Tj 10.5 0 Td (o) Tj 10 0 Td (f)", "list of"),
    ],
)
def test_letters_are_parted_where_the_eye_parts_them(content: bytes, words: str, engine: str) -> None:
    assert seen(b"BT /F1 10 Tf 40 100 Td " + content + b" Tj ET", engine) == words


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("unit", [0.5, 1, 3])
def test_both_engines_heed_the_size_of_a_pages_unit(unit: float, packed: bool) -> None:
    with pymupdf.open(stream=page(show(b"two words")), filetype="pdf") as document:
        document.xref_set_key(document.page_xref(0), "UserUnit", f"{unit}")
        data = document.tobytes(garbage=3, deflate=True, use_objstms=int(packed))
    made = []
    for engine in ENGINES.values():
        with engine.open_pdf(data) as (_, read_page):
            made.append(read_page(0, PageStyle(dpi=72)))
    assert [one.image.shape for one in made] == [(round(200 * unit), round(300 * unit), 3)] * 2
    assert [one.words.texts for one in made] == [["two", "words"]] * 2
    assert abs(made[0].words.boxes - made[1].words.boxes).max() < 2 * max(1, unit)


@pytest.mark.parametrize(
    ("content", "coloured"),
    [
        (show(b"black") + b"q .4 g 9 9 80 40 re f Q .6 .6 .6 RG 9 9 80 40 re S ", False),
        (show(b"a word", b"/Thin gs .5 0 0 rg"), True),
        (b"0 0 0 1 k 9 9 80 40 re f ", True),  # black of print is not quite black on a screen
        (b"1 0 0 RG 9 9 80 40 re S ", True),
        (OVER, True),
        (b"q /Sh sh Q ", True),
    ],
)
def test_pages_without_colour_are_drawn_in_grey_and_look_the_same(content: bytes, coloured: bool) -> None:
    with mupdf.open_pdf(page(content, resources=RESOURCES, more=OBJECTS)) as (_, read_page):
        image = read_page(0, PageStyle(dpi=100)).image
    with pymupdf.open(stream=page(content, resources=RESOURCES, more=OBJECTS), filetype="pdf") as document:
        drawing = document[0].get_displaylist()
        in_colour = mupdf.draw(drawing, 100 / 72)
    assert mupdf.is_coloured(drawing) == coloured and is_one_plane(image) == (not coloured)
    assert np.abs(image.astype(int) - in_colour).max() <= (0 if coloured else 1)  # a grey in colours is rounded thrice


def test_words_in_one_place_are_found_among_all() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 900, (400, 2)).astype(float)
    boxes = np.concatenate([low, low + rng.integers(0, 60, (400, 2))], axis=1)
    texts = [f"{n % 7}" for n in range(400)]
    pairs = [(a, b) for a in range(400) for b in range(400) if texts[a] != texts[b]]
    expected = {a for a, b in pairs if overlap(boxes[a].tolist(), boxes[b].tolist()) > OVERLAP}
    assert overlapping_words(texts, boxes) == sorted(expected) and 0 < len(expected) < 400
    assert overlapping_words([], np.zeros((0, 4))) == []
