"""How true the words of a picture are: which of them stand on ink, and how much ink stands outside of all boxes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

INK = 48  # difference of values of 255 from the paper that counts as ink, as pipeline.filters.ink does


class Truth(NamedTuple):
    """Share of words with ink under their boxes, and share of ink outside of all boxes; 1 and 0 where there is none."""

    words_with_ink: float
    ink_outside: float


def shares(image: np.ndarray, boxes: np.ndarray) -> Truth:
    """The shares of a picture uint8 [H, W, 3] and boxes [n, 4] (x0, y0, x1, y1) in its pixels."""
    paper = [np.bincount(image[..., channel].ravel()).argmax() for channel in range(3)]
    inked = (np.abs(image.astype(np.int16) - np.array(paper, np.int16)) > INK).any(axis=2)
    outside, with_ink = inked.copy(), 0
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
        place = slice(max(0, int(y0) - 1), int(np.ceil(y1)) + 1), slice(max(0, int(x0) - 1), int(np.ceil(x1)) + 1)
        with_ink += bool(inked[place].any())
        outside[place] = False
    num_ink = int(inked.sum())
    return Truth(with_ink / len(boxes) if len(boxes) else 1.0, int(outside.sum()) / num_ink if num_ink else 0.0)
