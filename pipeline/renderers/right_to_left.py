"""Lines with letters that run from right to left, in the order in which they are read.

A file places glyphs, and engines guess what is read after what: each its own way where numbers, brackets, Latin words
or ligatures stand among Arabic and Hebrew. Here a line is put in order by where its letters stand: the Unicode
bidirectional algorithm (UAX #9) backwards, for lines without nested embeddings.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import Literal, TypeVar

from data_specs.records import Box
from pipeline.renderers.words import BREAK, GAP, Character

Item = TypeVar("Item")
Direction = Literal["R", "L", "W", "N"]  # leftwards, rightwards, digits, neither
_DIRECTIONS: dict[str, Direction] = {"R": "R", "AL": "R", "L": "L", "EN": "W", "AN": "W"}  # of Unicode's bidi classes
SPACE = 0.2  # of the height of most letters of a line, between two from which they are of two words
NEAR = 8  # letters before and behind a mark in the file, of which one is its own
MIRRORED = str.maketrans("()[]{}<>«»‹›", ")(][}{><»«›‹")
_RIGHT_TO_LEFT = re.compile(  # letters, without the marks among them
    "[\u05d0-\u05f2\u0620-\u064a\u066e\u066f\u0671-\u06d5\u06fa-\u08c9\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
_TURNED = re.compile("^([\u0622\u0623\u0625\u0627])(\u0644)$")  # lam and alef in one glyph, as PDFium gives them


def in_reading_order(characters: Sequence[Character], parted: bool) -> Sequence[Character]:
    """Return the same characters; those of right-to-left lines in logical order, a BREAK behind each word.

    Args:
        characters: as an engine finds them, lines or words apart by BREAK, boxes as the page is shown.
        parted: whether the engine has parted all words, and mirrored brackets, as PDFium does.
    """
    if not _runs_left(characters):
        return characters
    directions = [_direction(char) for char, _, _ in characters]
    mostly = directions.count("R") > directions.count("L")
    pieces = [list(group) for is_break, group in groupby(characters, lambda char: char is BREAK) if not is_break]
    return [char for line in _lines(pieces) for char in _ordered(line, parted, mostly)]


def _runs_left(characters: Sequence[Character]) -> bool:
    """Whether there are letters that run from right to left."""
    return bool(_RIGHT_TO_LEFT.search("".join([char[0] for char in characters])))


def _lines(pieces: list[list[Character]]) -> Iterator[list[list[Character]]]:
    """Pieces that follow each other and stand on one line."""
    line = list[list[Character]]()
    boxes = list[Box]()
    for piece in pieces:
        box = _around(piece)
        if line and not _is_beside(box, boxes):
            yield line
            line = []
            boxes = []
        line.append(piece)
        boxes.append(box)
    if line:
        yield line


def _is_beside(box: Box, boxes: list[Box]) -> bool:
    """Whether a piece stands on the line of others: as high as the last one, and over or under none of them."""
    (x0, top, x1, bottom), (_, above, _, below) = box, boxes[-1]
    level = min(bottom, below) - max(top, above) > min(bottom - top, below - above) / 2
    slack = SPACE * (bottom - top)
    return level and all(x1 - slack <= left or right <= x0 + slack for left, _, right, _ in boxes)


def _around(characters: Sequence[Character]) -> Box:
    boxes = [box for char, box, _ in characters if not char.isspace()] or [(0.0, 0.0, 0.0, 0.0)]
    left, top, right, bottom = zip(*boxes)
    return min(left), min(top), max(right), max(bottom)


def _ordered(pieces: list[list[Character]], parted: bool, mostly: bool) -> list[Character]:
    """One line; it runs from right to left where most of its words do, or half and the page `mostly` does."""
    line = [char for piece in pieces for char in (*piece, BREAK)]
    x0, y0, x1, y1 = _around(line)
    if not _runs_left(line) or y1 - y0 > x1 - x0:
        return line  # those that stand upright are left as they were found
    if parted:
        words = sorted((_glyphs(piece) for piece in pieces), key=lambda word: _around(word)[0])
    else:
        words = list(_words(_glyphs(line)))
    directions = [_direction_of_word(word) for word in words]
    leftwards = directions.count("R") + mostly > directions.count("L")
    ordered = _logical(words, directions, leftwards)
    return [char for word, _ in ordered for char in (*_letters(word, leftwards, mirrored=parted), BREAK)]


def _letters(word: list[Character], leftwards: bool, mirrored: bool) -> Iterator[Character]:
    directions = [_direction(char) for char, _, _ in word]
    for (char, box, pale), turned in _logical(word, directions, leftwards):
        yield char.translate(MIRRORED) if turned and not mirrored else char, box, pale


def _glyphs(line: list[Character]) -> list[Character]:
    """From left to right: letters with their marks, and what a ligature stands for, as one."""
    bases = [n for n, char in enumerate(line) if char not in (GAP, BREAK) and not _is_attached(char)]
    parts = dict[int, list[int]]()
    for number, char in enumerate(line):
        if bases and char not in (GAP, BREAK) and _is_attached(char):
            position = bisect(bases, number)
            near = bases[max(0, position - NEAR) : position + NEAR]
            nearest = min(near, key=lambda base: (_between(line[base][1], char[1]), abs(base - number)))
            parts.setdefault(nearest, []).append(number)
    whole = [_joined(line, base, parts.get(base, [])) for base in bases]
    return sorted([*whole, *_spaces(line)], key=lambda char: char[1][0] + char[1][2])


def _spaces(line: list[Character]) -> Iterator[Character]:
    """Insert a space where an engine sees a gap, between the letters before and behind it."""
    for number, char in enumerate(line[1:-1], 1):
        (ax0, top, ax1, bottom), (bx0, _, bx1, _) = line[number - 1][1], line[number + 1][1]
        if char is GAP and min(ax1, bx1) < max(ax0, bx0) and BREAK not in (line[number - 1], line[number + 1]):
            yield " ", (min(ax1, bx1), top, max(ax0, bx0), bottom), False


def _is_attached(char: Character) -> bool:
    """Whether it is a mark of a letter, or a later letter of a ligature, which has no width."""
    text, (x0, _, x1, _), _ = char
    return (x1 <= x0 and not text.isspace()) or unicodedata.category(text[0]) == "Mn"


def _between(base: Box, part: Box) -> float:
    """How far the middle of a part lies from a base's middle, beyond half its width."""
    return max(0.0, abs(part[0] + part[2] - base[0] - base[2]) - (base[2] - base[0]))


def _joined(line: list[Character], base: int, parts: list[int]) -> Character:
    """Join a letter with its parts behind it; engines that turn a line round put a ligature's later letters first."""
    text, box, pale = line[base]
    later = [n for n in parts if unicodedata.category(line[n][0][0]) != "Mn"]
    marks = [n for n in parts if n not in later]
    later.sort(reverse=bool(later) and later[0] < base)
    whole = text + "".join(line[n][0] for n in later)
    return _TURNED.sub(r"\2\1", whole) + "".join(line[n][0] for n in marks), box, pale


def _words(glyphs: list[Character]) -> Iterator[list[Character]]:
    height = median([box[3] - box[1] for char, box, _ in glyphs if not char.isspace()] or [0.0])
    word = list[Character]()
    for char in glyphs:
        if word and (char[0].isspace() or char[1][0] - word[-1][1][2] > SPACE * height):
            yield word
            word = []
        if not char[0].isspace():
            word.append(char)
    if word:
        yield word


def _direction(text: str) -> Direction:
    return _DIRECTIONS.get(unicodedata.bidirectional(text[0]), "N")


def _direction_of_word(word: list[Character]) -> Direction:
    directions = {_direction(char) for char, _, _ in word}
    return "R" if "R" in directions else "L" if "L" in directions else "N"


def _logical(items: list[Item], directions: list[Direction], leftwards: bool) -> list[tuple[Item, bool]]:
    """Items that stand from left to right in the order in which they are read, and which of them were turned round.

    Args:
        items: words of a line, or letters of a word.
        directions: in which each of them runs.
        leftwards: whether the line runs from right to left.
    """
    found = list[tuple[Item, bool]]()
    for start, stop, turned in _spans(directions, "R", "L") if not leftwards else [(0, len(items), True)]:
        if not turned:
            found += [(item, False) for item in items[start:stop]]
            continue
        inner = list(_spans(directions[start:stop], "LW", "R"))
        for a, b, kept in reversed(inner):
            piece = items[start + a : start + b]
            found += [(item, not kept) for item in (piece if kept else reversed(piece))]
    return found


def _spans(directions: list[Direction], wanted: str, others: str) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, wanted) of all items: what is wanted begins and ends with such ones, and has no others inside."""
    start = 0
    while start < len(directions):
        if directions[start] not in wanted:
            stop = next((n for n in range(start, len(directions)) if directions[n] in wanted), len(directions))
            yield start, stop, False
        else:
            end = next((n for n in range(start, len(directions)) if directions[n] in others), len(directions))
            stop = max(n for n in range(start, end) if directions[n] in wanted) + 1
            yield start, stop, True
        start = stop
