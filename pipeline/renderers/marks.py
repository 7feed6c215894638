"""Where the text of a page leaves a mark: what differs from the same page drawn without its text.

One answer for text that is covered, masked, clipped away, transparent, or of the colour of what it stands on. Where
other words stand in the same place, text that leaves none is found by drawing the page without it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_specs.records import Box
from pipeline.png import grey_plane, is_one_plane

CONTRAST = 16  # least difference of 255 between a colour and the paper's, and least opacity, of text that can be seen
MARK = 8  # least difference of 255 that text makes to a pixel: of thin or tiny letters none has their whole colour
CELL = 2  # pixels a side of a cell: marks are counted in cells
STEP = 4  # pixels between those from which the paper's colour is taken
OVERLAP = 0.1  # share of the smaller box from which two words overlap
DRAWINGS = 8  # most that a page costs
ROWS = 64  # boxes that are compared at a time with those that begin above their lower ends

DrawWithout = Callable[[set[int]], np.ndarray]  # the picture without some text objects
Ground = np.ndarray | tuple[int, ...]  # what text stands on: a picture [H, W, 3], or a colour


class Marks:
    """Marks bool [H, W] on a picture, to be asked for many boxes at once."""

    def __init__(self, marked: np.ndarray) -> None:
        self.marked = marked
        height, width = (-(-side // CELL) for side in marked.shape)
        cells = np.zeros((height * CELL, width * CELL), bool)
        cells[: marked.shape[0], : marked.shape[1]] = marked
        pairs = cells.view(np.uint16)  # CELL pixels of a row
        self.sums = np.zeros((height + 1, width + 1), np.int32)  # of all cells above and to the left
        np.cumsum((pairs[::CELL] | pairs[1::CELL]) != 0, 1, dtype=np.int32, out=self.sums[1:, 1:])
        for row in range(1, height):  # np.cumsum along columns takes three times as long
            self.sums[row + 1] += self.sums[row]

    def on_line(self, box: list[float], side: int) -> bool:
        """Return whether a mark lies on the line of pixels inside a side (left, top, right, bottom) of a box."""
        x0, y0, x1, y1 = (int(value) for value in box)
        columns = slice(x0, x1 + 1)
        rows = slice(y0, y1 + 1)
        last = max(0, x1 - 1)
        lowest = max(0, y1 - 1)
        lines = (
            (rows, slice(x0, x0 + 1)),
            (slice(y0, y0 + 1), columns),
            (rows, slice(last, last + 1)),
            (slice(lowest, lowest + 1), columns),
        )
        return bool(self.marked[lines[side]].any())

    def under(self, boxes: np.ndarray) -> np.ndarray:
        """Return whether a mark lies in each of boxes float [n, 4], or less than a cell beside it: bool [n]."""
        ends = np.array(self.sums.shape)[::-1] - 1
        low = np.clip(np.floor(boxes[:, :2] / CELL).astype(np.int64), 0, ends)
        high = np.clip(np.ceil(boxes[:, 2:] / CELL).astype(np.int64), 0, ends)
        high = np.minimum(np.maximum(high, low + 1), ends)
        (x0, y0), (x1, y1) = low.T, high.T
        return np.asarray(self.sums[y1, x1] - self.sums[y0, x1] - self.sums[y1, x0] + self.sums[y0, x0] > 0)


def differ(image: np.ndarray, ground: Ground, least: int = MARK) -> np.ndarray:
    """Return which pixels of a picture uint8 [H, W, 3] differ from the ground by so much in a channel.

    The answer is bool [H, W].
    """
    if isinstance(ground, np.ndarray):
        if is_one_plane(image) and is_one_plane(ground):
            image = image[..., :1]
            ground = ground[..., :1]
        one = np.ascontiguousarray(image)
        other = np.ascontiguousarray(ground)
        apart = np.maximum(one, other) - np.minimum(one, other) >= least
        return _any([apart[..., channel] for channel in range(apart.shape[2])])
    plane = grey_plane(image)
    planes = [image[..., n] for n in range(3)] if plane is None or len(set(ground)) > 1 else [plane]
    return _any([_apart(one, colour - least, colour + least) for one, colour in zip(planes, ground)])


def _apart(plane: np.ndarray, low: int, high: int) -> np.ndarray:
    """Which values of uint8 are `low` at most or `high` at least; where there can be none, none is looked for."""
    if low < 0:
        return plane >= high
    if high > 255:
        return plane <= low
    return (plane <= low) | (plane >= high)


def _any(planes: list[np.ndarray]) -> np.ndarray:
    return planes[0] if len(planes) == 1 else planes[0] | planes[1] | planes[2]


def paper(image: np.ndarray) -> tuple[int, int, int]:
    """Return the commonest value of each channel of uint8 [H, W, 3]."""
    some = image[::STEP, ::STEP]
    if is_one_plane(image):
        grey = _commonest(some[..., 0])
        return grey, grey, grey
    return _commonest(some[..., 0]), _commonest(some[..., 1]), _commonest(some[..., 2])


def _commonest(plane: np.ndarray) -> int:
    return int(np.bincount(plane.ravel()).argmax())


def is_pale(colour: tuple[int, ...], ground: tuple[int, int, int]) -> bool:
    """Return whether a colour cannot be told from the paper's."""
    return all(abs(a - b) < CONTRAST for a, b in zip(colour, ground))


# ---- text that leaves none -----------------------------------------------------------------------------------------
def overlapping_words(texts: list[str], boxes: np.ndarray) -> list[int]:
    """Return the numbers of the words, boxes float [n, 4], that overlap another word."""
    found = set[int]()
    order = np.argsort(boxes[:, 1], kind="stable")
    stops = np.searchsorted(boxes[order, 1], boxes[order, 3])
    for start in range(0, len(texts), ROWS):
        these = order[start : start + ROWS]
        near = order[start : stops[start : start + ROWS].max()]
        for one, other in ((these[a], near[b]) for a, b in intersecting(boxes[these], boxes[near])):
            if texts[one] != texts[other] and overlap(boxes[one].tolist(), boxes[other].tolist()) > OVERLAP:
                found |= {int(one), int(other)}
    return sorted(found)


def unmarked(boxes: Mapping[int, np.ndarray], image: np.ndarray, draw_without: DrawWithout) -> set[int]:
    """Return the text objects without which a picture uint8 [H, W, 3] is the same in their boxes [4].

    Those that are apart from each other are left out of one drawing; those that were found are left out for good.
    """
    waiting = sorted(boxes)
    hidden = set[int]()
    for _ in range(DRAWINGS):
        taken = _standing_apart(waiting, boxes)
        if not taken:
            break
        without = draw_without(hidden | set(taken))
        hidden.update(number for number in taken if not _differ_in(image, without, boxes[number]))
        waiting = [number for number in waiting if number not in taken]
    return hidden


def _standing_apart(numbers: list[int], boxes: Mapping[int, np.ndarray]) -> list[int]:
    """Return some of the numbers whose boxes do not meet, the first among them."""
    taken = list[int]()
    for number in numbers:
        if not (taken and intersecting(boxes[number][None], np.array([boxes[other] for other in taken]))):
            taken.append(number)
    return taken


def intersecting(some: np.ndarray, boxes: np.ndarray) -> list[list[int]]:
    """Return the pairs of the numbers of boxes [k, 4] and [n, 4] that have an area in common."""
    left, top, right, bottom = some.T[:, :, None]
    meet = (left < boxes[:, 2]) & (boxes[:, 0] < right) & (top < boxes[:, 3]) & (boxes[:, 1] < bottom)
    pairs: list[list[int]] = np.argwhere(meet).tolist()
    return pairs


def _differ_in(image: np.ndarray, other: np.ndarray, box: np.ndarray) -> bool:
    x0, y0, x1, y1 = (max(0, int(value)) for value in (box[0] - 1, box[1] - 1, box[2] + 2, box[3] + 2))
    return bool(differ(image[y0:y1, x0:x1], other[y0:y1, x0:x1]).any())


# ---- boxes ---------------------------------------------------------------------------------------------------------
def around_each(boxes: np.ndarray, starts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the box around each run of boxes [m, 4], float [n, 4], by where the runs begin."""
    low = np.minimum.reduceat(boxes[:, :2], starts)
    high = np.maximum.reduceat(boxes[:, 2:], starts)
    return np.concatenate([low, high], axis=1)


def overlap(a: Box, b: Box) -> float:
    """Return the common area of two boxes as a share of the smaller one; 0 where that has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller if width > 0 and height > 0 and smaller > 0 else 0.0
