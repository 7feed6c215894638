"""Words of a picture as the eye sees them: letters from an engine's characters, each word once, with its box.

What an engine calls text is what a file says; what counts here is what was painted: a word without a mark under its box
is not there. Ligatures and presentation forms become letters in this one place, so that every score sees the same.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from data_specs.records import Box, InfoFields, Reason
from data_specs.sections import PageStyle
from pipeline.renderers import UnreadableError
from pipeline.renderers.marks import Marks, around_each, overlap

EDGE = 1  # pixels of a box beyond a picture's edge from which its word is cut
SLIVER = 2  # pixels of a cut word in both directions from which it counts as seen
SAME_PLACE = 0.6  # share of the smaller box from which the same letters are painted twice in one place
TRACKED = 3  # gaps in a line from which its letters may be spaced
SPREAD = 0.3  # of the highest letter, by which a space between words is wider than one between spaced letters
UNKNOWN = "\ufffd"  # a glyph of which the file does not say what it means
UNTRUSTED = 0.05  # share of unknown letters from which a page's words cannot be trusted
POINTS = 72.0  # of an inch
_SOFT_HYPHEN = "\u00ad"
_JOINERS = "\u200c\u200d"


class Glyphs(NamedTuple):
    """What an engine found: words in reading order, where each begins among the glyphs, boxes float [m, 4] of these
    (x0, y0, x1, y1), and which of them may have no mark in their box though they are seen: accents, unknown ones."""

    texts: list[str]
    starts: list[int]
    boxes: np.ndarray
    slight: list[bool]

    def across(self) -> np.ndarray:
        """Return whether the words run across, bool [n], and not up or down."""
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

    def within(self, left: int, top: int, width: int, height: int, marks: Marks) -> Words:
        """Return the words of which something is seen in a piece of the picture.

        They are in pixels of the piece, clipped to it.

        Args:
            marks: those of text on the whole picture.
        """
        moved = self.boxes - (left, top, left, top)
        boxes = np.clip(moved, 0, (width, height, width, height))
        beyond = np.abs(moved - boxes) > EDGE
        at_edge = beyond.any(axis=1)
        if not at_edge.any():
            return self._replace(boxes=boxes)
        least = np.where(at_edge, SLIVER, 0)[:, None]
        reach = np.asarray((boxes[:, 2:] - boxes[:, :2] >= least).all(axis=1))
        inside = boxes + (left, top, left, top) + beyond * (1, 1, -1, -1)  # a cell begun beyond the edge does not count
        reach[at_edge] &= marks.under(inside[at_edge])
        along = np.where(self.across[:, None], (True, False, True, False), (False, True, False, True))
        cut = self.cut | (beyond & along).any(axis=1)
        for n in np.flatnonzero(reach & ~cut & (beyond & ~along).any(axis=1)).tolist():
            # boxes are as high as the font: what goes beyond may be without a mark
            sides = np.flatnonzero(beyond[n])
            at = boxes[n] + (left, top, left, top)
            cut[n] = any(marks.on_line(at.tolist(), side) for side in sides.tolist())
        return self._replace(boxes=boxes, cut=cut).only(np.flatnonzero(reach).tolist())

    def deduplicated(self) -> Words:
        """Return each word once, also where it is painted again in the same place.

        A poor man's bold, for instance, paints it again.
        """
        kept = defaultdict[str, list[Box]](list)
        chosen = list[int]()
        for number, (text, box) in enumerate(zip(self.texts, self.boxes.tolist(), strict=True)):
            x0, y0, x1, y1 = box
            near = (o for o in kept[text] if o[0] < x1 and x0 < o[2] and o[1] < y1 and y0 < o[3])
            if not any(overlap(box, other) > SAME_PLACE for other in near):
                kept[text].append(box)
                chosen.append(number)
        return self.only(chosen)

    def joined_as(self, known: Sequence[str]) -> Words:
        """Join the pieces of one known word that stand on one line into one word.

        Engines part some scripts' letters within words.

        Args:
            known: words of which these are a part in the same order; else they are left as they are.
        """
        position = "".join(known).find("".join(self.texts))
        if position < 0:
            return self
        ends = {0, *accumulate(map(len, known))}
        groups = list[list[int]]()
        for number, text in enumerate(self.texts):
            if groups and position not in ends and self._on_one_line(number - 1, number):
                groups[-1].append(number)
            else:
                groups.append([number])
            position += len(text)
        if len(groups) == len(self.texts):
            return self
        firsts = [group[0] for group in groups]
        boxes = around_each(self.boxes, firsts)
        texts = ["".join(self.texts[n] for n in group) for group in groups]
        return Words(texts, boxes, np.logical_or.reduceat(self.cut, firsts), self.across[firsts], self.trusted)

    def _on_one_line(self, one: int, other: int) -> bool:
        (_, above, _, bottom), (_, top, _, below) = self.boxes[one].tolist(), self.boxes[other].tolist()
        return bool(min(bottom, below) - max(above, top) > min(bottom - above, below - top) / 2)

    def only(self, chosen: list[int]) -> Words:
        """Return the words of these numbers."""
        if len(chosen) == len(self.texts):
            return self
        texts = [self.texts[n] for n in chosen]
        return Words(texts, self.boxes[chosen].reshape(-1, 4), self.cut[chosen], self.across[chosen], self.trusted)

    def fields(self, scale: float) -> InfoFields:
        """Return the fields of a SampleInfo, in pixels times `scale`."""
        whole = [text for text, cut in zip(self.texts, self.cut) if not cut]
        boxes = (tuple(box) for box in (self.boxes * scale).round(1).tolist())
        return {
            "text": " ".join(whole),
            "words": tuple(self.texts),
            "boxes": tuple(boxes),
            "clipped": tuple(self.cut.tolist()),
            "trusted": self.trusted,
        }


class Page(NamedTuple):
    """A rendered page: uint8 [H, W, 3], its words, the marks of its text, and what the engine says of it."""

    image: np.ndarray
    words: Words
    marks: Marks
    repaired: bool
    pictured: float  # share of the page under its largest picture; 0 where it has words


Character = tuple[str, Box, bool]  # what the file calls it, its box, and whether it has the paper's own colour
BREAK: Character = ("\n", (0.0, 0.0, 0.0, 0.0), False)  # no word goes on behind it
GAP: Character = ("\t", (0.0, 0.0, 0.0, 0.0), False)  # a distance that the engine takes for a space
ReadPage = Callable[[int, PageStyle], Page]  # of a page's number


@lru_cache(maxsize=1 << 16)
def letters(char: str) -> str:
    """Return what a glyph's characters stand for: letters, "" for those that leave no mark, " " for white space.

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


@lru_cache(maxsize=1 << 12)
def stands_for_itself(char: str) -> bool:
    """Return whether a character is one visible letter or sign that runs from left to right.

    It must do so whatever stands beside it.
    """
    plain = "!" <= char < "\u0590" or "\u1e00" <= char < "\u2200"
    return plain and char.isprintable() and letters(char) == char and unicodedata.category(char)[0] != "M"


def tracking(characters: Sequence[Character]) -> set[int]:
    """Return the numbers of those gaps that only space the letters of words.

    They are nearly equal ones between all letters of a line.
    """
    breaks = [-1, *(n for n, char in enumerate(characters) if char is BREAK), len(characters)]
    return {gap for start, stop in pairwise(breaks) for gap in _tracking_of(characters, range(start + 1, stop))}


def _tracking_of(characters: Sequence[Character], line: range) -> list[int]:
    gaps = [n for n in line[1:-1] if characters[n] is GAP]
    if len(gaps) < TRACKED:
        return []
    gaps = [n for n in gaps if _is_letter(characters[n - 1]) and _is_letter(characters[n + 1])]
    if len(gaps) < TRACKED or any(_is_letter(characters[n]) and _is_letter(characters[n + 1]) for n in line[:-1]):
        return []
    widths = np.array([_distance(characters[n - 1][1], characters[n + 1][1]) for n in gaps])
    height = max(max(x1 - x0, y1 - y0) for _, (x0, y0, x1, y1), _ in characters[line.start : line.stop])
    near = widths < np.median(widths) + SPREAD * height
    return [gap for gap, one in zip(gaps, near.tolist(), strict=True) if one]


def _is_letter(char: Character) -> bool:
    return char[0].isalpha()


def _distance(a: Box, b: Box) -> float:
    """Between two boxes side by side or one above the other."""
    return max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])


def gather(characters: Iterable[Character]) -> Glyphs:
    """Gather words from characters in reading order.

    White space parts words, and so does a change between the paper's own colour and another one; a character that is
    painted twice in a row counts once.
    """
    texts = list[str]()
    starts = list[int]()
    boxes = list[Box]()
    slight = list[bool]()
    word = last = ""
    was_pale = False
    for char, box, pale in characters:
        text = char if "!" <= char <= "~" else letters(char)
        if word and (text == " " or pale != was_pale):
            texts.append(_finished(word))
            word = last = ""
        if text.strip() and not (text == last and overlap(boxes[-1], box) > SAME_PLACE):
            if not word and texts and unicodedata.category(text[0]).startswith("M"):
                word = texts.pop()  # a mark that stands before its letter begins no word
            elif not word:
                starts.append(len(boxes))
            word += text
            last = text
            was_pale = pale
            boxes.append(box)
            slight.append(not text.isascii() and (text == UNKNOWN or unicodedata.category(text[0])[0] == "M"))
    if word:
        texts.append(_finished(word))
    return Glyphs(texts, starts, np.array(boxes, dtype=np.float64).reshape(-1, 4), slight)


def _finished(word: str) -> str:
    """Return a word in composed letters; a soft hyphen is seen at its end alone."""
    if word.isascii():
        return word
    word = word[:-1].replace(_SOFT_HYPHEN, "") + word[-1].replace(_SOFT_HYPHEN, "-")
    return unicodedata.normalize("NFC", word)


def visible(glyphs: Glyphs, marks: Marks, doubtful: bool) -> Words:
    """Return the words of which a letter leaves a mark on a picture; those with letters that leave none are cut.

    Args:
        glyphs: with boxes in pixels of the picture.
        marks: of the text on it; boxes are clipped to its size.
        doubtful: whether the engine found vertical writing, or did not know letters that it gave.
    """
    if not glyphs.texts:
        return Words([], np.zeros((0, 4)), np.zeros(0, bool), np.zeros(0, bool))
    seen = marks.under(glyphs.boxes)
    some = np.flatnonzero(np.logical_or.reduceat(seen, glyphs.starts)).tolist()
    empty = (glyphs.boxes[:, 2:] <= glyphs.boxes[:, :2]).any(axis=1)  # the later letters of a ligature
    cut = ~np.logical_and.reduceat(seen | glyphs.slight | empty, glyphs.starts)
    words = Words(glyphs.texts, around_each(glyphs.boxes, glyphs.starts), cut, glyphs.across()).only(some)
    height, width = marks.marked.shape
    words = words.within(0, 0, width, height, marks).deduplicated()
    return words._replace(trusted=not doubtful and _are_known(words.texts))


def _are_known(texts: list[str]) -> bool:
    """Whether few letters are unknown."""
    text = "".join(texts)
    return text.count(UNKNOWN) <= UNTRUSTED * len(text)


def share_under(boxes: Iterable[Box], area: float) -> float:
    """Share of an area under the largest of some boxes."""
    return max(((x1 - x0) * (y1 - y0) / area for x0, y0, x1, y1 in boxes), default=0.0)


def page_scale(width: float, height: float, style: PageStyle) -> float:
    """Return the pixels a point at which a page of so many points is drawn.

    They are those of style.dpi, or those that fit the page into style.fit.

    Raises:
        UnreadableError: it is empty, or has more pixels than allowed.
    """
    if width <= 0 or height <= 0:
        raise UnreadableError(Reason.PAGE_FAILED, "a page of no size")
    scale = style.dpi / POINTS
    if style.fit:
        scale = min(style.fit[0] / width, style.fit[1] / height)
    if width * height * scale**2 > style.max_pixels:
        size = f"{width * scale:.0f}x{height * scale:.0f}"
        raise UnreadableError(Reason.TOO_LARGE, f"a page of {size} px; render.pages.max_pixels is {style.max_pixels}")
    return scale
