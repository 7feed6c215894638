"""Filters: what is not worth keeping. Each gives a reason under which its receipts count it."""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np

from data_specs.spec import Filters


def ink(image: np.ndarray) -> float:
    """Share of pixels of uint8 [H, W, 3] that differ from the commonest value by more than 48 of 255."""
    grey = image[..., 1]
    background = int(np.bincount(grey.ravel(), minlength=256).argmax())
    return float((np.abs(grey.astype(np.int16) - background) > 48).mean())


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
    scripts = Counter(unicodedata.name(c, "?").split()[0] for c in text[:2000] if c.isalpha())
    return scripts.most_common(1)[0][0] if scripts else None


class UnitFilter:
    """Applies the filters to the pictures of one unit; near duplicates are looked for within the unit."""

    def __init__(self, filters: Filters) -> None:
        self.filters, self.seen = filters, np.zeros(0, np.uint64)

    def reason(self, image: np.ndarray) -> str | None:
        """Why a picture is dropped, or None; a picture that is kept counts for later near duplicates."""
        if self.filters.min_ink and ink(image) < self.filters.min_ink:
            return "too little ink"
        if self.filters.near_duplicates is None:
            return None
        bits = np.uint64(perceptual_hash(image))
        distances = np.bitwise_count(self.seen ^ bits)
        if len(distances) and int(distances.min()) <= self.filters.near_duplicates:
            return "near duplicate"
        self.seen = np.append(self.seen, bits)
        return None
