"""Rich text: passages drawn with Pillow in several fonts, sizes, weights and colours, with the box of every word.

After the paper's Text-Image (section 4): at most 100 words with a margin on a square; what is "rich" is the spec's.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from data_specs.records import Reason
from data_specs.spec import TextStyle
from pipeline.renderers import Lost, Picture
from pipeline.renderers.fonts import characters, font, width


@dataclass(frozen=True)
class Word:
    """A word as it will be drawn."""

    text: str
    family: str
    weight: str
    size: int
    colour: str
    starts_block: bool = False
    indent: int = 0

    @property
    def width(self) -> float:
        return width(self.family, self.weight, self.size, self.text)

    @property
    def space(self) -> float:
        return width(self.family, self.weight, self.size, " ")


def render_text(
    text: str, document_id: str, style: TextStyle, seed: int, canvas: int, size: int
) -> Iterator[Picture | Lost]:
    """Pictures [size, size, 3] of a passage drawn on `canvas` pixels, at most style.max_images of them, in order.

    All chances are functions of (seed, document, picture). Characters no font can draw: one Lost, never empty boxes.
    """
    words = unicodedata.normalize("NFC", text).split()
    families = [f for f in style.fonts if all(ord(c) in characters(f) for c in set("".join(words)))]
    if not words or not families:
        yield Lost("", Reason.NO_FONT if words else Reason.NO_TEXT)
        return
    for number in range(style.max_images):
        if not words:
            return
        rng = random.Random(f"{seed}/{document_id}/{number}")
        page = _Page(style, rng, rng.choice(families), canvas)
        words = words[page.fill(words[: style.max_words]) :]
        if not page.drawn:
            yield Lost(f"-{number}", Reason.DOES_NOT_FIT)
            return
        yield Picture(f"-{number}" if style.max_images > 1 else "", page.picture(size), page.about(size))


class _Page:
    """One picture being set: a choice of style, a pen position, and what was drawn."""

    def __init__(self, style: TextStyle, rng: random.Random, family: str, canvas: int) -> None:
        self.style, self.rng, self.family, self.canvas = style, rng, family, canvas
        self.body = rng.randint(*style.sizes)
        self.colour, self.background = rng.choice(style.colours), rng.choice(style.backgrounds)
        self.alignment = rng.choice(style.alignments)
        self.weight = rng.choice(style.weights)
        self.heading = rng.random() < style.headings
        self.is_list = rng.random() < style.lists
        self.image = Image.new("RGB", (canvas, canvas), ImageColor.getrgb(self.background))
        self.draw = ImageDraw.Draw(self.image)
        self.top = float(style.margin)
        self.drawn: list[tuple[list[float], str]] = []
        self.lines: list[str] = []

    def fill(self, texts: list[str]) -> int:
        """Sets as many words as fit and returns their number."""
        words, used, line = [self._style(i, t, len(texts)) for i, t in enumerate(texts)], 0, list[Word]()
        for word in words:
            if line and (word.starts_block or not self._fits([*line, word])):
                if not self._set(line, last=word.starts_block):
                    return used
                used, line = used + len(line), []
            if word.width > self.canvas - 2 * self.style.margin - word.indent:
                return used + (len(line) if line and self._set(line, last=True) else 0)
            line.append(word)
        return used + (len(line) if line and self._set(line, last=True) else 0)

    def _style(self, place: int, text: str, total: int) -> Word:
        heading_words = min(5, total) if self.heading else 0
        if place < heading_words:
            return Word(text, self.family, "bold", round(self.body * 1.3), self.colour, place == 0)
        starts = place == heading_words or (self.is_list and (place - heading_words) % 8 == 0)
        weight, colour = self.weight, self.colour
        if self.rng.random() < self.style.emphasis:
            weight, colour = self.rng.choice(self.style.weights), self.rng.choice(self.style.colours)
        return Word(text, self.family, weight, self.body, colour, starts, self.body if self.is_list else 0)

    def _fits(self, line: list[Word]) -> bool:
        return self._width(line) + line[0].indent <= self.canvas - 2 * self.style.margin

    def _width(self, line: list[Word]) -> float:
        return sum(word.width for word in line) + sum(word.space for word in line[:-1])

    def _set(self, line: list[Word], last: bool) -> bool:
        """Draws a line; False where the picture is full."""
        size = max(word.size for word in line)
        ascent, descent = font(line[0].family, line[0].weight, size).getmetrics()
        if self.top + ascent + descent > self.canvas - self.style.margin + descent / 2:
            return False
        free = self.canvas - 2 * self.style.margin - line[0].indent - self._width(line)
        share = {"left": 0.0, "centre": 0.5, "right": 1.0, "justify": 0.0}[self.alignment]
        gap = free / (len(line) - 1) if self.alignment == "justify" and len(line) > 1 and not last else 0.0
        left = self.style.margin + line[0].indent + free * share
        if line[0].indent and line[0].starts_block:
            self._bullet(line[0], left)
        for word in line:
            self._word(word, left, ascent)
            left += word.width + word.space + gap
        self.lines.append(" ".join(word.text for word in line))
        self.top += size * self.style.line_spacing
        return True

    def _word(self, word: Word, left: float, ascent: int) -> None:
        place = (round(left), round(self.top) + ascent)
        self.draw.text(place, word.text, fill=word.colour, font=font(word.family, word.weight, word.size), anchor="ls")
        self.drawn.append(
            ([left, self.top, left + word.width, self.top + word.size * self.style.line_spacing], word.text)
        )

    def _bullet(self, word: Word, left: float) -> None:
        middle, radius = round(self.top + 0.65 * word.size), max(1, word.size // 8)
        centre = round(left - 0.5 * word.size)
        self.draw.ellipse([centre - radius, middle - radius, centre + radius, middle + radius], fill=word.colour)

    def picture(self, size: int) -> np.ndarray:
        image = self.image if size == self.canvas else self.image.resize((size, size), Image.Resampling.BICUBIC)
        return np.array(image)

    def about(self, size: int) -> dict[str, object]:
        scale = size / self.canvas
        boxes = [[*(round(side * scale, 1) for side in box), text] for box, text in self.drawn]
        return {
            "text": "\n".join(self.lines),
            "words": boxes,
            "box": [0, 0, self.canvas, self.canvas],
            "style": {
                "font": self.family,
                "size": self.body,
                "weight": self.weight,
                "colour": self.colour,
                "alignment": self.alignment,
                "heading": self.heading,
                "list": self.is_list,
            },
        }
