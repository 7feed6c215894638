"""Rich text: structure is the document's own, words are where they are seen, and every script is set right."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pytest

from data_specs.records import Reason
from data_specs.sections import TextStyle
from data_specs.spec import load_spec
from pipeline.renderers import NoPicture, Picture, mupdf
from pipeline.renderers.text import Format, render_text
from pipeline.renderers.words import Words
from pipeline.truth import count_ink

MARKDOWN = """# Title

A *paragraph* with `code`, x<sup>2</sup> and [a link](https://example.org).

- one
- two

| a | b |
| - | - |
| 1 | 2 |

    def f(x):
        return x

![left out](https://example.org/a.png)
"""


def draw(text: str, form: Format = "plain", canvas: int = 512, size: int = 384, **style: object) -> list[Picture]:
    """The pictures of a passage."""
    made = list(render_text(text, "it", TextStyle.model_validate(style), 0, canvas, size, form))
    assert all(isinstance(one, Picture) for one in made)
    return made  # type: ignore[return-value]


def test_markdown_keeps_its_structure_and_words_stand_on_ink() -> None:
    [made] = draw(MARKDOWN, "markdown", sizes=(20, 20))
    words, boxes = list(made.about["words"]), np.array(made.about["boxes"])
    expected = "Title A paragraph with code, x2 and a link. • one • two a b 1 2 def f(x): return x"
    assert words == expected.split() and made.about["text"] == expected
    assert made.image.shape == (384, 384, 3) and made.about["box"] == (0, 0, 512, 512)
    assert count_ink(made.image, boxes).words_with_ink == 1
    left = dict(zip(words, boxes[:, 0].tolist(), strict=True))
    assert left["one"] > left["paragraph"] - 40 and left["return"] > left["def"] and left["b"] > left["a"]


@pytest.mark.parametrize(
    ("text", "is_taken_as_known"),
    [
        (
            "A well-known, rather long-winded passage (“letters” & signs) – with hyphens-at-the-end-of-lines. " * 3,
            True,
        ),
        ("Ein Kätzchen für Zoë\u00a0Ōe; εἰς τὴν ἀρχήν; все люди рождаются свободными. " * 3, True),
        ("b fi\ufb01 co\u00adop a\u20ddb x", False),
        ("الناس يولدون أحرارا and twelve 12 words", False),
        ("नमस्ते दुनिया", False),
    ],
)
@pytest.mark.parametrize("style", [{"colours": ["#000000"]}, {"columns": [2], "backgrounds": ["#fff8e1"]}])
def test_text_that_is_known_is_read_as_any_other(
    text: str, is_taken_as_known: bool, style: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    style = {"fonts": ["noto-sans"], "sizes": (24, 24)} | style
    read, were_known = mupdf.read_known, list[bool]()

    def watched(*arguments: Any) -> Words | None:
        words = read(*arguments)
        were_known.append(words is not None)
        return words

    monkeypatch.setattr("pipeline.renderers.text.read_known", watched)
    made = draw(text, **style)
    assert set(were_known) == {is_taken_as_known}
    body = f'<body dir="{"rtl" if text.startswith("ا") else "ltr"}"><p>{html.escape(text.strip())}</p></body>'
    alike = draw(body, "html", **style)  # the same as HTML, of which nothing is known
    assert len(made) == len(alike) and were_known == [is_taken_as_known] * len(made)
    for one, other in zip(made, alike, strict=True):
        assert (one.image == other.image).all() and one.about == other.about


@pytest.mark.parametrize("font", ["noto-sans", "fira-go", "ubuntu", "serif", "times"])
def test_words_with_ligatures_are_whole(font: str) -> None:
    [made] = draw("a file of affine and fluffy definitions", fonts=[font], sizes=(20, 20))
    assert made.about["text"] == "a file of affine and fluffy definitions"


@pytest.mark.parametrize(
    ("text", "form", "seen"),
    [
        ("&amp; &lt;b&gt; & x&copy; <i>", "plain", "&amp; &lt;b&gt; & x&copy; <i>"),
        ("`&lt;` &amp; &copy; & `&amp;amp;`", "markdown", "&lt; & © & &amp;amp;"),
        ("<p>&amp;lt; &amp; &copy; &#38;gt; & <code>&amp;amp;</code>", "html", "&lt; & © &gt; & &amp;"),
    ],
)
def test_entities_are_taken_for_characters_once(text: str, form: Format, seen: str) -> None:
    [made] = draw(text, form, sizes=(20, 20))
    assert made.about["text"] == seen


@pytest.mark.parametrize(
    ("words", "right_to_left"),
    [
        ("مرحبا بالعالم", True),
        ("שלום עולם", True),
        ("नमस्ते दुनिया", False),
        ("Ελληνικά γράμματα", False),
        ("中文 字体", False),
    ],
)
def test_every_script_is_set_by_the_engine_that_comes_along(words: str, right_to_left: bool) -> None:
    [made] = draw(words)
    assert list(made.about["words"]) == words.split()
    (first, *_), (second, *_) = made.about["boxes"]
    assert (first > second) == right_to_left
    assert count_ink(made.image, np.array(made.about["boxes"])).words_with_ink == 1
    margin = made.about["boxes"][0][2] > 300 if right_to_left else made.about["boxes"][0][0] < 60
    assert margin, "a paragraph begins at its own side"


@pytest.mark.parametrize(
    "text",
    [
        "نص، بِسْمِ اللَّهِ؛ نعم؟",
        "می‌خواهم به خانه بروم؛ قیمت",
        "हिन्दी में। कि ज्ञान॥",
        "データの、テスト。",
        "שׁ״ט עולם",
        "தமிழ் மொழி கொள்கை",
    ],
)
def test_signs_and_marks_that_scripts_share_are_drawn_in_the_font_beside_them(text: str) -> None:
    [picture] = render_text(text, "id", TextStyle(fonts=["noto-sans"]), 0, 384, 384)
    assert isinstance(picture, Picture) and picture.about["words"] == tuple(text.split())


def test_a_passage_that_is_longer_than_a_picture_goes_on_on_the_next() -> None:
    words = [f"word{number}" for number in range(150)]
    made = draw(" ".join(words), max_images=9, max_words=100)
    assert len(made) > 2 and [one.suffix for one in made][:2] == ["-0", "-1"]
    assert [word for one in made for word in one.about["words"]] == words
    assert not any(cut for one in made for cut in one.about["clipped"])
    [first] = draw(" ".join(words))
    assert first.about["words"] == made[0].about["words"] and first.suffix == ""


def test_two_columns_are_read_one_after_the_other() -> None:
    words = [f"w{number}" for number in range(100)]
    [made] = draw(" ".join(words), columns=[2], sizes=(24, 24))
    lefts = [box[0] for box in made.about["boxes"]]
    assert list(made.about["words"]) == words[: len(lefts)]
    turn = next(n for n, left in enumerate(lefts) if left > 192)
    assert 0 < turn < len(lefts) and all(left > 192 for left in lefts[turn:])


def test_a_table_wider_than_its_column_takes_the_whole_width() -> None:
    row = "| " + " | ".join(["considerably"] * 3) + " |"
    [made] = draw(f"{row}\n|-|-|-|\n{row}", "markdown", columns=[2], sizes=(20, 20))
    assert made.about["words"] == ("considerably",) * 6 and not any(made.about["clipped"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n\x07", Reason.NO_TEXT),
        ("a \U0010fffd", Reason.NO_FONT),
        ("w" * 100 + " and more", Reason.DOES_NOT_FIT),
    ],
)
def test_what_cannot_be_drawn_is_lost_with_its_reason(text: str, reason: Reason) -> None:
    [lost] = render_text(text, "it", TextStyle(), 0, 512, 384)
    assert isinstance(lost, NoPicture) and lost.reason == reason


def test_a_plain_passage_ends_before_a_word_that_is_too_wide() -> None:
    [made] = draw("two words " + "w" * 100 + " and more")
    assert made.about["text"] == "two words"


@pytest.mark.parametrize(
    "text",
    [
        "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
        "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
        "모든인간은태어날때부터자유로우며그존엄과권리에있어동등하다",
        "a-word-that-is-one-but-may-go-on-on-the-next-line-after-any-of-its-hyphens",
        "https://example.org/one/address/that/is/longer/than/any/line/of/this/picture/is",
    ],
)
def test_a_long_word_is_broken_where_its_script_breaks_it(text: str) -> None:
    [made] = draw(text, sizes=(24, 24), fonts=["noto-sans"], margin=20)
    assert "".join(made.about["words"]) == text and not any(made.about["clipped"])
    assert len(made.about["words"]) > 1 and max(box[2] for box in made.about["boxes"]) <= (512 - 20) * 0.75 + 1


def test_letters_of_whole_pixels_have_one_shape() -> None:
    def shapes(whole: bool) -> int:
        style = {"fonts": ["noto-sans"], "sizes": (14, 14), "margin": 1, "whole_pixels": whole}
        [made] = draw("a ia la fa va ta ja xa ka", canvas=256, size=256, **style)
        columns = made.image[:20, :, 1].T
        return len({column.tobytes() for column in columns})

    assert shapes(True) < shapes(False)


def test_headings_lists_and_paragraphs_stand_on_one_grid_of_whole_pixels() -> None:
    style = {"fonts": ["noto-sans"], "sizes": (14, 14), "margin": 0, "line_spacing": 1.15, "whole_pixels": True}
    lines = "# is the", "sum of", "- has", "- on"
    alone = [draw(line, "markdown", canvas=128, size=128, **style)[0].image[:16] for line in lines]
    [together] = draw("\n\n".join(lines[:3]) + "\n- on", "markdown", canvas=128, size=128, **style)
    for place, line in enumerate(alone):  # the same squares wherever a line stands
        assert (together.image[16 * place : 16 * place + 16] == line).all() and line.min() < 128


def test_style_sheets_are_drawn_from_the_spec_alone() -> None:
    style = {"backgrounds": ["#102030"], "colours": ["#ffe0a0"], "alignments": ["right"], "margin": (30, 30)}
    made, again = (draw("a few words", **style)[0] for _ in range(2))
    assert (made.image == again.image).all() and made.about == again.about
    assert tuple(made.image[0, 0]) == (0x10, 0x20, 0x30)
    assert abs(made.about["boxes"][-1][2] - (512 - 30) * 0.75) < 4


def test_the_published_preset_is_drawn_as_published() -> None:
    spec = load_spec("text_image_plain")
    style = spec.render.text
    assert spec.render.crop_size == 512 and style.sizes == (32, 32) and style.max_words == 100 and style.margin == 20
    text = " ".join(["Wikipedia"] * 120)
    [made] = render_text(text, "it", style, 0, 512, spec.shape.image_size)
    assert isinstance(made, Picture) and 20 < len(made.about["words"]) <= 100


def test_the_demo_has_four_lines() -> None:
    style = load_spec("demo").render.text
    [made] = render_text("of each line is of the the first in", "it", style, 0, 64, 64)
    assert isinstance(made, Picture) and not any(made.about["clipped"])
    assert len({box[1] for box in made.about["boxes"]}) == 4
