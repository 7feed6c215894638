"""How true the words of pictures are: which of them stand on ink, and how much ink stands outside of all boxes.

`dnd look` says it of each shard, `dnd verify --truth` of a sample of each set of pictures.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np

from data_specs.reader import decode_image, open_shards, read_info
from data_specs.shards import Shard
from pipeline.renderers.marks import differ

INK = 48  # difference of values of 255 from the paper that counts as ink, as pipeline.filters.ink does
PICTURES = 200  # looked at in a set
LEAST_WITH_INK = 0.99  # share of words below which a set is warned of


class Truth(NamedTuple):
    """Counts over some pictures: words, those with ink under their boxes, pixels of ink, those outside of all boxes."""

    num_words: int = 0
    num_with_ink: int = 0
    num_ink: int = 0
    num_outside: int = 0

    @property
    def words_with_ink(self) -> float:
        """Share of words with ink under their boxes; 1 without words."""
        return self.num_with_ink / self.num_words if self.num_words else 1.0

    @property
    def ink_outside(self) -> float:
        """Share of ink outside of all boxes; 0 without ink."""
        return self.num_outside / self.num_ink if self.num_ink else 0.0

    def plus(self, other: Truth) -> Truth:
        """Return the counts over both."""
        return Truth(*map(operator.add, self, other))

    def __str__(self) -> str:
        return (
            f"{self.words_with_ink:.1%} of {self.num_words} words have ink, {self.ink_outside:.1%} of ink has no word"
        )


def count_ink(image: np.ndarray, boxes: np.ndarray) -> Truth:
    """Return the counts of a picture uint8 [H, W, 3] and boxes [n, 4] (x0, y0, x1, y1) in its pixels."""
    commonest = tuple(int(np.bincount(image[..., channel].ravel()).argmax()) for channel in range(3))
    inked = differ(image, commonest, INK + 1)
    outside = inked.copy()
    with_ink = 0
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    for x0, y0, x1, y1 in boxes:
        around = slice(max(0, int(y0) - 1), int(np.ceil(y1)) + 1), slice(max(0, int(x0) - 1), int(np.ceil(x1)) + 1)
        with_ink += bool(inked[around].any())
        outside[around] = False
    return Truth(len(boxes), with_ink, int(inked.sum()), int(outside.sum()))


def truth_of_shard(shard: Shard, numbers: range) -> Truth:
    """Return the counts over some samples of a shard that have words."""
    return reduce(Truth.plus, (_of_sample(shard, number) for number in numbers), Truth())


def _of_sample(shard: Shard, number: int) -> Truth:
    info = read_info(shard, number)
    if not info.words:
        return Truth()
    image = decode_image(shard.fields(number).get("png", b""), f"{shard.uri}: {shard.key(number)}")
    return count_ink(image, np.array(info.boxes))


def check_truth(set_uri: str) -> Iterator[str]:
    """Yield what a sample of a set of pictures shows, in one line; a warning where words stand on nothing."""
    pictures = open_shards(set_uri)
    truth = Truth()
    for index in range(0, len(pictures), max(1, len(pictures) // PICTURES)):
        shard, number = pictures.locate(index)
        truth = truth.plus(_of_sample(pictures.shard(shard), number))
    yield f"{set_uri}: {truth}"
    if truth.words_with_ink < LEAST_WITH_INK:
        yield f"{set_uri}: warning: words stand on nothing; look at them with `dnd look --boxes`"
