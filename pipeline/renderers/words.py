"""Words of a picture as the eye sees them: letters from an engine's characters, each word once, with its box.

What an engine calls text is what a file says; what counts here is what was painted: a word without a mark under its box
is not there. Ligatures and presentation forms become letters in this one place, so that every score sees the same.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from data_specs.records import Box, Reason
from data_specs.sections import PageStyle
from pipeline.png import grey_plane
from pipeline.renderers import UnreadableError

CONTRAST = 16  # least difference of two values of 255 under a word that can be seen
AROUND = 0.3  # least share of another colour around a word in the paper's own
STEP = 4  # pixels between those from which the paper's colour is taken
EDGE = 1  # pixels of a box beyond a picture's edge from which its word is cut
SLIVER = 2  # pixels of a cut word in both directions from which it counts as seen
OVERLAP = 0.6  # share of the smaller box from which the same letters are painted twice in one place
UNKNOWN = "\ufffd"  # a glyph of which the file does not say what it means
UNTRUSTED = 0.05  # share of unknown letters from which a page's words cannot be trusted
POINTS = 72.0  # of an inch
_SOFT_HYPHEN = "\u00ad"
_JOINERS = "\u200c\u200d"


class Glyphs(NamedTuple):
    """What an engine found: words in reading order, where each begins among the glyphs, boxes float [m, 4] of these
    (x0, y0, x1, y1), and which words have the paper's own colour."""

    texts: list[str]
    starts: list[int]
    boxes: np.ndarray
    pale: list[bool]

    def word_boxes(self) -> np.ndarray:
        """Boxes float [n, 4] of the words."""
        low = np.minimum.reduceat(self.boxes[:, :2], self.starts)
        high = np.maximum.reduceat(self.boxes[:, 2:], self.starts)
        return np.concatenate([low, high], axis=1)

    def across(self) -> np.ndarray:
        """Whether the words run across, bool [n], and not up or down."""
        middles = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        ends = np.array([*self.starts[1:], len(middles)]) - 1
        way = np.abs(middles[ends] - middles[self.starts])
        return np.asarray(way[:, 0] >= way[:, 1])


class Words(NamedTuple):
    """Words that can be seen, in reading order: texts, boxes float [n, 4] in pixels, which are cut by an edge, and
    which run across.

    They are not trusted where the file does not say what its letters are, or writes from top to bottom.
    """

    texts: list[str]
    boxes: np.ndarray
    cut: np.ndarray
    across: np.ndarray
    trusted: bool = True

    def within(self, left: int, top: int, image: np.ndarray, pale: list[bool] | None = None) -> Words:
        """Those of which something lies in a piece uint8 [H, W, 3] of the picture, in its pixels, clipped to it.

        Args:
            pale: which of them have the paper's own colour; with it every one is looked for, not only those at edges.
        """
        height, width = image.shape[:2]
        moved = self.boxes - (left, top, left, top)
        boxes, marks = np.clip(moved, 0, (width, height, width, height)), Marks(image)
        beyond = np.abs(moved - boxes) > EDGE
        least = np.where(beyond.any(axis=1), SLIVER, 0)[:, None]
        reach = np.asarray((boxes[:, 2:] - boxes[:, :2] >= least).all(axis=1))
        doubtful = beyond.any(axis=1) if pale is None else np.ones(len(boxes), bool)
        for n in np.flatnonzero(reach & doubtful).tolist():
            reach[n] = marks.under(boxes[n], pale is not None and pale[n])
        along = np.where(self.across[:, None], (True, False, True, False), (False, True, False, True))
        cut, above = self.cut | (beyond & along).any(axis=1), beyond & ~along
        for n in np.flatnonzero(reach & ~cut & above.any(axis=1)).tolist():
            # boxes are as high as the font: what goes beyond may be without ink
            cut[n] = any(marks.cross(boxes[n], side) for side in np.flatnonzero(above[n]).tolist())
        return self._replace(boxes=boxes, cut=cut).only(np.flatnonzero(reach).tolist())

    def without_twins(self) -> Words:
        """Each once, also where it is painted again in the same place, for instance as a poor man's bold."""
        places, chosen = defaultdict[str, list[Box]](list), list[int]()
        for number, (text, box) in enumerate(zip(self.texts, self.boxes.tolist(), strict=True)):
            x0, y0, x1, y1 = box
            near = (o for o in places[text] if o[0] < x1 and x0 < o[2] and o[1] < y1 and y0 < o[3])
            if not any(share(box, other) > OVERLAP for other in near):
                places[text].append(box)
                chosen.append(number)
        return self.only(chosen)

    def only(self, chosen: list[int]) -> Words:
        """Those of these numbers."""
        if len(chosen) == len(self.texts):
            return self
        texts = [self.texts[n] for n in chosen]
        return Words(texts, self.boxes[chosen].reshape(-1, 4), self.cut[chosen], self.across[chosen], self.trusted)

    def fields(self, scale: float) -> dict[str, Any]:
        """The fields of a SampleInfo, in pixels times `scale`."""
        whole = [text for text, cut in zip(self.texts, self.cut) if not cut]
        boxes = (tuple(box) for box in (self.boxes * scale).round(1).tolist())
        return {
            "text": " ".join(whole),
            "words": tuple(self.texts),
            "boxes": tuple(boxes),
            "clipped": tuple(self.cut.tolist()),
            "trusted": self.trusted,
        }

    def clipped_to(self, left: Words) -> Words:
        """Those of which something is left where characters are clipped away; a word that is not whole is cut."""
        whole = set(zip(left.texts, map(tuple, left.boxes)))
        cut = np.array([word not in whole for word in zip(self.texts, map(tuple, self.boxes))], dtype=bool)
        kept = [n for n, text in enumerate(self.texts) if not cut[n] or left.holds_part_of(text, tuple(self.boxes[n]))]
        return self._replace(cut=self.cut | cut).only(kept)

    def holds_part_of(self, text: str, box: Box) -> bool:
        """Whether one of these is a piece of a word at a place."""
        return any(part in text and share(at, box) > 0 for part, at in zip(self.texts, self.boxes.tolist()))


class Page(NamedTuple):
    """A rendered page: uint8 [H, W, 3], its words, and what the engine says of it."""

    image: np.ndarray
    words: Words
    repaired: bool
    pictured: float  # share of the page under its largest picture; 0 where it has words


Character = tuple[str, Box, bool]  # what the file calls it, its box, and whether it has the paper's own colour
BREAK: Character = (" ", (0.0, 0.0, 0.0, 0.0), False)
ReadPage = Callable[[int, PageStyle], Page]  # of a page's number


@lru_cache(maxsize=1 << 16)
def letters(char: str) -> str:
    """What a glyph's characters stand for: letters, "" for those that leave no mark, " " for white space.

    Compatibility forms are taken apart only where they are shapes of letters: ligatures, and presentation forms of
    Arabic and Hebrew. A superscript stays one.
    """
    if len(char) > 1:
        return "".join(map(letters, char))
    if char.isspace():
        return " "
    if "\ufb00" <= char <= "\ufdff" or "\ufe70" <= char < "\ufeff":
        return unicodedata.normalize("NFKC", char).strip()
    category = unicodedata.category(char)
    if category == "Co":
        return UNKNOWN
    unmarked = category in ("Cc", "Cf", "Cs", "Cn") and char not in _JOINERS + _SOFT_HYPHEN
    return "" if unmarked else char


def gather(characters: Iterable[Character]) -> Glyphs:
    """Words from characters in reading order.

    White space parts words, and so does a change between the paper's own colour and another one; a character that is
    painted twice in a row counts once.
    """
    texts, starts, boxes, pales = list[str](), list[int](), list[Box](), list[bool]()
    word, last = "", ""
    for char, box, pale in characters:
        text = char if "!" <= char <= "~" else letters(char)
        if word and (text == " " or pale != pales[-1]):
            texts.append(_finished(word))
            word = last = ""
        if text.strip() and not (text == last and share(boxes[-1], box) > OVERLAP):
            if not word and texts and unicodedata.category(text[0]).startswith("M"):
                word = texts.pop()  # a mark that stands before its letter begins no word
            elif not word:
                starts.append(len(boxes))
                pales.append(pale)
            word += text
            last = text
            boxes.append(box)
    if word:
        texts.append(_finished(word))
    return Glyphs(texts, starts, np.array(boxes, dtype=np.float64).reshape(-1, 4), pales)


def _finished(word: str) -> str:
    """A word in composed letters; a soft hyphen is seen at its end alone."""
    if word.isascii():
        return word
    word = word[:-1].replace(_SOFT_HYPHEN, "") + word[-1].replace(_SOFT_HYPHEN, "-")
    return unicodedata.normalize("NFC", word)


def share(a: Box, b: Box) -> float:
    """What two boxes have in common, as a share of the smaller one; 0 where that has no area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller if width > 0 and height > 0 and smaller > 0 else 0.0


def visible(glyphs: Glyphs, image: np.ndarray, doubtful: bool, each: bool = False) -> Words:
    """The words that can be seen in uint8 [H, W, 3]; boxes are in its pixels, clipped to it.

    Args:
        doubtful: whether the engine found vertical writing, or did not know letters that it gave.
        each: whether every glyph is looked at, not only every word: some may be clipped away.
    """
    if not glyphs.texts:
        return Words([], np.zeros((0, 4)), np.zeros(0, bool), np.zeros(0, bool))
    cut = np.zeros(len(glyphs.texts), bool)
    if each:
        marks = Marks(image)
        seen = np.array([marks.under(box) for box in glyphs.boxes])
        cut = ~np.logical_and.reduceat(seen, glyphs.starts)
    words = (
        Words(glyphs.texts, glyphs.word_boxes(), cut, glyphs.across()).within(0, 0, image, glyphs.pale).without_twins()
    )
    return words._replace(trusted=not doubtful and _are_known(words.texts))


class Marks:
    """What can be seen in a picture uint8 [H, W, 3]."""

    def __init__(self, image: np.ndarray) -> None:
        plane = grey_plane(image)
        self.planes = [image[..., channel] for channel in range(3)] if plane is None else [plane]
        self.image = image

    def under(self, box: np.ndarray, pale: bool = False) -> bool:
        """Whether anything can be seen within a pixel of a box; of a `pale` word: whether it stands on another colour
        than the paper's."""
        x0, y0 = max(0, int(box[0]) - 1), max(0, int(box[1]) - 1)
        x1, y1 = max(0, int(box[2]) + 2), max(0, int(box[3]) + 2)
        patches = [plane[y0:y1, x0:x1] for plane in self.planes]
        if not any(patch.size and int(patch.max()) - int(patch.min()) >= CONTRAST for patch in patches):
            return False
        if not pale:
            return True
        other = (np.abs(p.astype(np.int16) - colour) >= CONTRAST for p, colour in zip(patches, paper(self.image)))
        return any(part.mean() >= AROUND for part in other)

    def cross(self, box: np.ndarray, side: int) -> bool:
        """Whether anything can be seen on the line of pixels along a side (left, top, right, bottom) of a box."""
        x0, y0, x1, y1 = (int(value) for value in box)
        columns, rows = slice(x0, x1 + 1), slice(y0, y1 + 1)
        place = (
            (rows, slice(x0, x0 + 1)),
            (slice(y0, y0 + 1), columns),
            (rows, slice(x1 - 1, x1)),
            (slice(y1 - 1, y1), columns),
        )
        return any(int(plane[place[side]].max()) - int(plane[place[side]].min()) >= CONTRAST for plane in self.planes)


def paper(image: np.ndarray) -> tuple[int, int, int]:
    """The commonest value of each channel of uint8 [H, W, 3]."""
    some = image[::STEP, ::STEP]
    red, green, blue = (int(np.bincount(some[..., channel].ravel()).argmax()) for channel in range(3))
    return red, green, blue


def is_pale(colour: tuple[int, ...], ground: tuple[int, int, int]) -> bool:
    """Whether a colour cannot be told from the paper's."""
    return all(abs(a - b) < CONTRAST for a, b in zip(colour, ground))


def _are_known(texts: list[str]) -> bool:
    """Whether few letters are unknown."""
    text = "".join(texts)
    return text.count(UNKNOWN) <= UNTRUSTED * len(text)


def share_under(boxes: Iterable[Box], area: float) -> float:
    """Share of an area under the largest of some boxes."""
    return max(((x1 - x0) * (y1 - y0) / area for x0, y0, x1, y1 in boxes), default=0.0)


def page_scale(width: float, height: float, style: PageStyle) -> float:
    """Pixels a point at which a page of so many points is drawn: those of style.dpi, or that fit it into style.fit.

    Raises:
        UnreadableError: it is empty, or has more pixels than allowed.
    """
    scale = style.dpi / POINTS
    if style.fit and width > 0 and height > 0:
        scale = min(style.fit[0] / width, style.fit[1] / height)
    if width <= 0 or height <= 0 or width * height * scale**2 > style.max_pixels:
        size = f"{width * scale:.0f}x{height * scale:.0f}"
        raise UnreadableError(Reason.TOO_LARGE, f"a page of {size} px; render.pages.max_pixels is {style.max_pixels}")
    return scale
