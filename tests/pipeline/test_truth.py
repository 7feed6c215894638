"""The words of a page are those that the eye sees, each once, with its box on its ink: with either engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hostile_pdfs import FONT, stream
from hostile_pdfs import page as pdf_page
from made_pages import Made, made_pages, vertical

from data_specs.mupdf import pymupdf
from data_specs.records import Reason
from data_specs.sections import Filters, PageStyle, Render
from data_specs.sources.typeset import TypesetSource
from pipeline.renderers import NoPicture, Picture
from pipeline.renderers.pages import ENGINES, render_pdf
from pipeline.renderers.words import BREAK, Page, gather, letters
from pipeline.truth import count_ink

DPI = 100
both = pytest.mark.parametrize("engine", ENGINES)


def read(data: bytes, engine: str, number: int = 0) -> Page:
    """One page of a PDF."""
    with ENGINES[engine].open_pdf(data) as (_, read_page):
        return read_page(number, PageStyle(dpi=DPI))


def whole(page: Page) -> list[str]:
    """The words that no edge cuts."""
    return [text for text, cut in zip(page.words.texts, page.words.cut, strict=True) if not cut]


@both
@pytest.mark.parametrize("made", made_pages(), ids=lambda made: made.name)
def test_words_are_what_is_seen_and_their_boxes_hold_the_ink(made: Made, engine: str) -> None:
    page = read(made.data, engine)
    assert page.words.texts == made.words and page.words.trusted and not page.words.cut.any()
    truth = count_ink(page.image, page.words.boxes)
    assert truth.words_with_ink >= 0.99
    assert truth.ink_outside <= 0.02


@both
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hyph", "hyphen- ation of the exam- ple line"),
        ("invisible", "visible words"),
        ("double2", "Hello bold"),
    ],
)
def test_cases_have_the_words_that_are_seen(shared: Path, name: str, words: str, engine: str) -> None:
    assert whole(read((shared / f"cases/pdf/{name}.pdf").read_bytes(), engine)) == words.split()


@both
@pytest.mark.parametrize(("name", "number"), [("rot90", 240), ("crop", 142)])
def test_cases_have_their_boxes_on_the_ink(shared: Path, name: str, number: int, engine: str) -> None:
    page = read((shared / f"cases/pdf/{name}.pdf").read_bytes(), engine)
    assert len(whole(page)) == number
    truth = count_ink(page.image, page.words.boxes)
    assert truth.words_with_ink == 1
    assert truth.ink_outside <= 0.02


def pictures(data: bytes, engines: list[str], size: int = 64, **render: object) -> list[Picture | NoPicture]:
    """What a PDF gives at one crop a page and 72 dpi."""
    source = TypesetSource(kind="typeset", documents=1)
    style = PageStyle.model_validate({"dpi": 72, "crops": 1, "engines": engines})
    return list(render_pdf(data, "it", Render(sources=[source], pages=style, **render), 0, size))


@pytest.mark.parametrize(
    ("name", "engines", "became"),
    [
        ("clipdeep", ["mupdf", "pdfium"], ["PyMuPDF", "pypdfium2", "PyMuPDF"]),
        ("clipdeep", ["mupdf"], ["PyMuPDF", Reason.PAGE_FAILED, "PyMuPDF"]),
        ("kid_null", ["mupdf", "pdfium"], ["PyMuPDF", Reason.PAGE_FAILED, "PyMuPDF"]),
        ("kid_null", ["pdfium"], ["pypdfium2", Reason.PAGE_FAILED, "pypdfium2"]),
    ],
)
def test_a_bad_page_costs_one_page(shared: Path, name: str, engines: list[str], became: list[str]) -> None:
    made = pictures((shared / f"cases/pdf/{name}.pdf").read_bytes(), engines)
    assert [one.reason if isinstance(one, NoPicture) else one.about["engine"].split()[0] for one in made] == became
    assert all(one.detail for one in made if isinstance(one, NoPicture))


@both
def test_a_word_that_a_crop_cuts_is_marked_and_not_in_the_text(engine: str) -> None:
    row = " ".join(f"({n:03d} ) Tj" for n in range(60))
    lines = " T* ".join([row] * 20)
    data = pdf_page(f"BT /F1 12 Tf 14 TL 10 280 Td {lines} ET".encode(), b"0 0 600 300")
    [made] = pictures(data, [engine], size=200)
    assert isinstance(made, Picture)
    about = made.about
    assert about["text"].split() == [w for w, cut in zip(about["words"], about["clipped"], strict=True) if not cut]
    assert 0 < sum(about["clipped"]) < len(about["words"]) / 2
    boxes = np.array(about["boxes"])
    assert boxes.min() >= 0 and boxes.max() <= 200
    assert count_ink(made.image, boxes).words_with_ink == 1
    touching = (boxes < 1).any(axis=1) | (boxes > 199).any(axis=1)
    assert set(np.flatnonzero(about["clipped"])) <= set(np.flatnonzero(touching))


@both
def test_what_is_covered_and_written_over_is_not_seen(engine: str) -> None:
    lines = [b"/F1 12 Tf 30 %d Td (covered %d)" % (y, y) for y in (40, 80, 120)]
    covered = b"".join(b"BT %s Tj ET " % line for line in lines) + b"1 g 20 30 200 120 re f 0 g "
    over = b"".join(b"BT %s Tj ET " % line.replace(b"covered", b"visible") for line in lines)
    assert whole(read(pdf_page(covered + over), engine)) == ["visible", "40", "visible", "80", "visible", "120"]


@both
def test_a_scan_with_an_invisible_layer_of_text_is_a_scan(engine: str) -> None:
    document = pymupdf.open()
    picture = document.new_page()
    picture.insert_text((72, 72), "printed words")
    pixmap = picture.get_pixmap()
    scan = document.new_page()
    scan.insert_image(scan.rect, pixmap=pixmap)
    scan.insert_text((72, 72), "printed words", render_mode=3)
    page = read(document.tobytes(), engine, 1)
    assert page.words.texts == [] and page.pictured > 0.9


@both
def test_vertical_writing_is_marked_and_can_be_filtered(engine: str) -> None:
    [kept] = pictures(vertical(), [engine])
    [dropped] = pictures(vertical(), [engine], filters=Filters(untrusted="drop"))
    assert isinstance(kept, Picture) and kept.about["trusted"] is False
    assert isinstance(dropped, NoPicture) and dropped.reason == Reason.UNTRUSTED_WORDS


@both
def test_letters_without_a_map_are_marked(engine: str) -> None:
    font = b"<< /F9 << /Type /Font /Subtype /Type3 /FontBBox [0 0 10 10] /FontMatrix [.1 0 0 .1 0 0] /FirstChar 1 "
    font += b"/LastChar 2 /Widths [10 10] /Encoding << /Differences [1 /g1 /g2] >> "
    font += b"/CharProcs << /g1 10 0 R /g2 10 0 R >> >> >>"
    glyph = b"<< /Length 35 >>\nstream\n10 0 0 0 10 10 d1 0 0 8 8 re f      \nendstream"
    contents = b"BT /F9 20 Tf 40 100 Td <0102010201> Tj ET"
    data = pdf_page(contents, resources=b"/Font " + font, more={10: glyph})
    assert not read(data, engine).words.trusted


@both
def test_text_of_annotations_is_seen(engine: str) -> None:
    document = pymupdf.open()
    document.new_page().add_freetext_annot((72, 72, 300, 120), "a note beside", fontsize=14)
    assert whole(read(document.tobytes(), engine)) == ["a", "note", "beside"]


TO_LETTERS = (
    b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def "
    b"1 begincodespacerange <00> <FF> endcodespacerange %d beginbfchar %s endbfchar endcmap end end"
)


def mapped(contents: bytes, letters: dict[str, str]) -> bytes:
    """A page whose font /F2 means other letters than it shows; /F1 means what it shows."""
    pairs = [b"<%02X> <%s>" % (ord(c), text.encode("utf-16-be").hex().encode()) for c, text in letters.items()]
    font = FONT[:-2] + b"/ToUnicode 11 0 R >>"
    return pdf_page(contents, more={5: font, 11: stream(TO_LETTERS % (len(pairs), b" ".join(pairs)))})


@both
@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"/Span << /ActualText (Goodbye) >> BDC (Hello) Tj EMC ( world) Tj", "Hello world"),
        (b"/Span << /ActualText () >> BDC (Hello) Tj EMC ( world) Tj", "Hello world"),
        (b"/Span << /ActualText (three whole words) >> BDC (one two) Tj EMC", "one two"),
        (b"(exam) Tj /Span << /ActualText <FEFF00AD> >> BDC (-) Tj EMC T* (ple line) Tj", "exam- ple line"),
        (
            b"(de) Tj /Span << /ActualText (fi) >> BDC (X) Tj EMC (ned ) Tj /S << /ActualText (x) >> BDC (y) Tj EMC",
            "defined y",
        ),
    ],
)
def test_what_a_text_is_to_be_read_as_counts_where_its_letters_are_unknown(
    contents: bytes, words: str, engine: str
) -> None:
    data = mapped(b"BT /F1 12 Tf 14 TL 40 100 Td " + contents + b" ET", {"X": "\ue001"})
    page = read(data, engine)
    assert page.words.texts == words.split() and count_ink(page.image, page.words.boxes).ink_outside <= 0.02


ARABIC = {"k": "ك", "t": "ت", "a": "ا", "b": "ب", "s": "س", "n": "ن", "h": "ه", "L": "لا"}


@both
@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ("ns batk", "كتاب سن"),
        ("ns 42 (batk)", "(كتاب) 42 سن"),
        ("ns Jo ZED hL :batk", "كتاب: لاه Jo ZED سن"),
        ("Jo :2024-5 ZED batk Jo ns batk Me", "Jo :2024-5 ZED كتاب Jo كتاب سن Me"),
    ],
)
def test_lines_that_run_from_right_to_left_are_read_so(shown: str, words: str, engine: str) -> None:
    contents = b"BT /F1 12 Tf 14 TL 40 100 Td (%s) Tj T* (%s) Tj ET" % (shown.encode(), shown.encode())
    assert read(mapped(contents, ARABIC), engine).words.texts == words.split() * 2


def test_real_pages_with_arabic_and_hebrew_are_read_in_order(shared: Path) -> None:
    arabic = read((shared / "data/pdf/good/arabi-book.pdf").read_bytes(), "mupdf").words.texts
    assert arabic == ["شمس", "النهار", "توفيق", "الحكيم", "١٦", "كانون", "الأول", "٢٠٠٦"]
    hebrew = read((shared / "data/pdf/good/cjhebrew.pdf").read_bytes(), "mupdf", 1).words.texts
    lines = "typed after the consonant they belong to (for example", "otherwise you will get a wrong result"
    assert all(line in " ".join(hebrew) for line in lines)


@both
def test_forms_within_forms_are_looked_into_as_deep_as_they_are_drawn(engine: str) -> None:
    entries = b"/Type /XObject /Subtype /Form /BBox [0 0 300 200] /Matrix [.98 .02 -.02 .98 2 1] /Resources << "
    form = entries + b"/Font << /F1 5 0 R >> /XObject << /X %d 0 R >> >>"
    forms = {10 + n: stream(b"/X Do", form % (11 + n)) for n in range(19)}
    forms[29] = stream(b"BT /F1 16 Tf 60 60 Td (deep words) Tj 500 0 Td (cut) Tj ET", form % 5)
    page = read(pdf_page(b"/X Do", resources=b"/XObject << /X 10 0 R >>", more=forms), engine)
    assert page.words.texts == ["deep", "words"] and count_ink(page.image, page.words.boxes).ink_outside <= 0.02


def test_numbers_of_glyphs_are_no_letters() -> None:
    data = pdf_page(b"BT /F1 20 Tf 40 100 Td (lnu) Tj ET", more={5: FONT.replace(b"Helvetica", b"ZapfDingbats")})
    assert read(data, "mupdf").words.texts == ["\ufffd" * 3]


def test_a_space_that_is_written_over_parts_no_word() -> None:
    page = read(pdf_page(b"BT /F1 12 Tf 40 100 Td [(soft ) 278 (hyphen) -278 (apart)] TJ ET"), "mupdf")
    assert page.words.texts == ["softhyphen", "apart"]


def test_letters_are_folded_once() -> None:
    assert [letters(char) for char in "ﬁﬃﭏﻻ²ﷲ"] == ["fi", "ffi", "אל", "لا", "²", "الله"]
    assert {letters(char) for char in "\x00\x02\x7f\u200b\u202e\ufeff\ufffe\uffff\ud800"} == {""}
    assert letters("\uf0b7") == "\ufffd" and letters("\u00a0") == " "


def test_a_soft_hyphen_is_seen_at_a_words_end_alone() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    text = [(char, box, False) for char in "ex\u00adam\u00ad"]
    assert gather([*text, BREAK]).texts == ["exam-"]
