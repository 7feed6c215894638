"""Filters: what is not worth keeping. Each gives a reason under which its receipts count it.

A filter is one entry of FILTERS and one key of the spec's render.filters. `dnd look` shows what it took: it renders
once more with every filter at the value that lets all pass.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_specs.records import Reason
from data_specs.sections import Filters, Render

SCANNED = 0.8  # share of a page without words under one picture, from which it counts as scanned
Taken = tuple[Reason, str]


class Observation(NamedTuple):
    """What is known of a passage, page or picture when filters look at it; None: nothing, and that filter passes it.

    pictured: share of the page under its largest picture; trusted: whether the file says what its letters are;
    script: of most letters; ink: share of pixels; nearest: bits by which the hash of the nearest kept picture differs.
    """

    pictured: float | None = None
    trusted: bool | None = None
    script: str | None = None
    ink: float | None = None
    nearest: int | None = None


class Filter(NamedTuple):
    """A filter: its key in render.filters, the value with which it lets all pass, and what it takes, with a detail."""

    key: str
    off: str | float | None
    takes: Callable[[Filters, Observation], Taken | None]


def _scanned(filters: Filters, seen: Observation) -> Taken | None:
    if filters.scanned == "keep" or seen.pictured is None or seen.pictured < SCANNED:
        return None
    return Reason.SCANNED, f"{seen.pictured:.0%} under one picture"


def _untrusted(filters: Filters, seen: Observation) -> Taken | None:
    return (Reason.UNTRUSTED_WORDS, "") if filters.untrusted == "drop" and seen.trusted is False else None


def _script(filters: Filters, seen: Observation) -> Taken | None:
    if not filters.scripts or seen.script is None or seen.script in filters.scripts:
        return None
    return Reason.SCRIPT, seen.script


def _little_ink(filters: Filters, seen: Observation) -> Taken | None:
    if seen.ink is None or seen.ink >= filters.min_ink:
        return None
    return (Reason.TOO_LITTLE_INK, f"{seen.ink:.4f} of the pixels") if seen.ink else (Reason.BLANK, "")


def _near_duplicate(filters: Filters, seen: Observation) -> Taken | None:
    if filters.near_duplicates is None or seen.nearest is None or seen.nearest > filters.near_duplicates:
        return None
    return Reason.NEAR_DUPLICATE, f"{seen.nearest} bits from one that was kept"


FILTERS = (
    Filter("scanned", "keep", _scanned),
    Filter("untrusted", "keep", _untrusted),
    Filter("scripts", None, _script),
    Filter("min_ink", 0.0, _little_ink),
    Filter("near_duplicates", None, _near_duplicate),
)


def taken_by(filters: Filters, seen: Observation) -> Taken | None:
    """Return the reason and detail of the first filter that takes what is observed; None where all pass it."""
    return next((taken for one in FILTERS if (taken := one.takes(filters, seen))), None)


def without_filters(render: Render) -> Render:
    """Return a section of the spec with which nothing is filtered: so `dnd look` gets the pictures of what was."""
    off = Filters.model_validate({one.key: one.off for one in FILTERS})
    return render.model_copy(update={"filters": off, "pages": render.pages.model_copy(update={"min_words": 0})})


# ---- what filters look at ------------------------------------------------------------------------------------------
def ink(image: np.ndarray) -> float:
    """Share of pixels of uint8 [H, W, 3] that differ from the commonest value by more than 48 of 255."""
    grey = np.ascontiguousarray(image[..., 1])
    corner = int(grey[0, 0])
    if 2 * np.count_nonzero(grey == corner) > grey.size:  # the commonest, as paper is: nothing need be counted out
        low, high = max(0, corner - 48), min(255, corner + 48)
        return 1 - int(np.count_nonzero((grey >= low) & (grey <= high))) / grey.size
    counts = np.array(Image.fromarray(grey).histogram())
    background = int(counts.argmax())
    return 1 - float(counts[max(0, background - 48) : background + 49].sum()) / grey.size


def perceptual_hash(image: np.ndarray) -> int:
    """Compute the 64-bit difference hash of an image.

    Its bits say whether each cell of a 9 x 8 reduction is lighter than its right neighbour.
    """
    rows, columns = (_edges(length, number) for length, number in zip(image.shape[:2], (8, 9), strict=True))
    bands = [image[top:below, :, 1].sum(axis=0, dtype=np.uint32) for top, below in pairwise(rows)]
    sums = np.add.reduceat(np.stack(bands), columns[:-1], axis=1, dtype=np.int64)
    means = sums / np.outer(np.diff(rows), np.diff(columns))
    return int(np.packbits((means[:, :-1] > means[:, 1:]).ravel()).view(">u8")[0])


@lru_cache(maxsize=64)
def _edges(length: int, number: int) -> list[int]:
    """Where each of so many cells side by side begins among `length` pixels, and the end."""
    edges: list[int] = np.linspace(0, length, number + 1).astype(int).tolist()
    return edges


def script_of(text: str) -> str | None:
    """Return the script of most letters of a text as Unicode names it (LATIN, CJK …), or None without letters."""
    scripts = Counter[str]()
    for letter, times in Counter(text[:2000]).items():
        if letter.isalpha():
            scripts[_script_of_letter(letter)] += times
    return scripts.most_common(1)[0][0] if scripts else None


@lru_cache(maxsize=1 << 16)
def _script_of_letter(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0]


class KeptHashes:
    """Perceptual hashes of the pictures of one unit that were kept."""

    def __init__(self) -> None:
        self.hashes = np.zeros(0, np.uint64)

    def nearest(self, picture_hash: int) -> int | None:
        """Return the bits by which the nearest one differs; None before the first."""
        distances = np.bitwise_count(self.hashes ^ np.uint64(picture_hash))
        return int(distances.min()) if len(distances) else None

    def add(self, picture_hash: int) -> None:
        """Note a picture that is kept."""
        self.hashes = np.append(self.hashes, np.uint64(picture_hash))
