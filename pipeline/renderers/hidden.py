"""Text that leaves no mark where other words stand, in a layer that is off, clipped away or covered: found by drawing
the page without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.renderers.marks import differ
from pipeline.renderers.words import share

SHARED = 0.1  # share of the smaller box from which words stand in one place
DRAWINGS = 8  # most that a page costs
ROWS = 64  # boxes that are compared at a time with those that begin above their lower ends

DrawWithout = Callable[[set[int]], np.ndarray]  # the picture without some text objects


def in_one_place(texts: list[str], boxes: np.ndarray) -> list[int]:
    """Numbers of the words, boxes float [n, 4], that share their place with another word."""
    found = set[int]()
    order = np.argsort(boxes[:, 1], kind="stable")
    stops = np.searchsorted(boxes[order, 1], boxes[order, 3])
    for start in range(0, len(texts), ROWS):
        these = order[start : start + ROWS]
        near = order[start : stops[start : start + ROWS].max()]
        for one, other in ((these[a], near[b]) for a, b in meeting(boxes[these], boxes[near])):
            if texts[one] != texts[other] and share(boxes[one].tolist(), boxes[other].tolist()) > SHARED:
                found |= {int(one), int(other)}
    return sorted(found)


def unmarked(boxes: Mapping[int, np.ndarray], image: np.ndarray, draw_without: DrawWithout) -> set[int]:
    """Those text objects without which a picture uint8 [H, W, 3] is the same in their boxes [4].

    Those that are apart from each other are left out of one drawing; those that were found are left out for good.
    """
    waiting = sorted(boxes)
    hidden = set[int]()
    for _ in range(DRAWINGS):
        taken = _apart(waiting, boxes)
        if not taken:
            break
        without = draw_without(hidden | set(taken))
        hidden.update(number for number in taken if not _differ(image, without, boxes[number]))
        waiting = [number for number in waiting if number not in taken]
    return hidden


def _apart(numbers: list[int], boxes: Mapping[int, np.ndarray]) -> list[int]:
    """Some of the numbers whose boxes do not meet, the first among them."""
    taken = list[int]()
    for number in numbers:
        if not (taken and meeting(boxes[number][None], np.array([boxes[other] for other in taken]))):
            taken.append(number)
    return taken


def meeting(some: np.ndarray, boxes: np.ndarray) -> list[list[int]]:
    """Pairs of the numbers of boxes [k, 4] and [n, 4] that have an area in common."""
    left, top, right, bottom = some.T[:, :, None]
    meet = (left < boxes[:, 2]) & (boxes[:, 0] < right) & (top < boxes[:, 3]) & (boxes[:, 1] < bottom)
    pairs: list[list[int]] = np.argwhere(meet).tolist()
    return pairs


def _differ(image: np.ndarray, other: np.ndarray, box: np.ndarray) -> bool:
    x0, y0, x1, y1 = (max(0, int(value)) for value in (box[0] - 1, box[1] - 1, box[2] + 2, box[3] + 2))
    return bool(differ(image[y0:y1, x0:x1], other[y0:y1, x0:x1]).any())
