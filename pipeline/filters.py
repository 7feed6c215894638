"""Filters: what is not worth keeping. Each gives a reason under which its receipts count it."""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np


def ink(image: np.ndarray) -> float:
    """Share of pixels of uint8 [H, W, 3] that differ from the commonest value by more than 48 of 255."""
    grey = image[..., 1]
    counts = np.bincount(grey.ravel(), minlength=256)
    background = int(counts.argmax())
    return 1 - float(counts[max(0, background - 48) : background + 49].sum()) / grey.size


def perceptual_hash(image: np.ndarray) -> int:
    """64-bit difference hash: is each cell of a 9 x 8 reduction darker than its right neighbour."""
    height, width = image.shape[:2]
    rows, columns = np.linspace(0, height, 9).astype(int), np.linspace(0, width, 10).astype(int)
    cells = np.add.reduceat(np.add.reduceat(image[..., 1].astype(np.int64), rows[:-1], 0), columns[:-1], 1)
    areas = np.outer(np.diff(rows), np.diff(columns))
    means = cells / areas
    bits = (means[:, :-1] > means[:, 1:]).ravel()
    return int(np.packbits(bits).view(">u8")[0])


def script_of(text: str) -> str | None:
    """The script of most letters of a text as Unicode names it (LATIN, CYRILLIC, CJK …), or None without letters."""
    scripts = Counter[str]()
    for letter, times in Counter(text[:2000]).items():
        if letter.isalpha():
            scripts[unicodedata.name(letter, "?").split()[0]] += times
    return scripts.most_common(1)[0][0] if scripts else None


class Duplicates:
    """Near duplicates among the pictures of one unit: `distance` is the number of bits that hashes may differ in."""

    def __init__(self, distance: int) -> None:
        self.distance, self.seen = distance, np.zeros(0, np.uint64)

    def holds(self, picture_hash: int) -> bool:
        """Whether one like it was kept; if not, it is kept."""
        bits = np.uint64(picture_hash)
        distances = np.bitwise_count(self.seen ^ bits)
        if len(distances) and int(distances.min()) <= self.distance:
            return True
        self.seen = np.append(self.seen, bits)
        return False
