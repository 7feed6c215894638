"""The images of each training step: a function of (seed, step), split over the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from data_specs.reader import ShardSet
from tokenize_jobs.views import Pixels, random_view


class Draw(NamedTuple):
    """An image drawn for a step: its set, its number there, and where the view is cut (`views.random_view`)."""

    shard_set: int
    image: int
    at: tuple[float, float, float]


def draw(sets: Sequence[ShardSet], weights: Sequence[float], batch: int, seed: int, step: int) -> list[Draw]:
    """Draw the images of a step, a function of (seed, step): sets by weight, images and cuts evenly."""
    rng = np.random.default_rng((seed, step))
    numbers = rng.choice(len(sets), size=batch, p=np.array(weights) / sum(weights))
    indices = [int(rng.integers(len(sets[number]))) for number in numbers]
    cuts = rng.random((batch, 3)).tolist()
    return [Draw(int(n), index, tuple(at)) for n, index, at in zip(numbers, indices, cuts, strict=True)]


def split_batch(batch: int, world: int, micro: int | None) -> list[list[list[int]]]:
    """Return which images of a step's `batch` each rank takes: [rank][micro batch] -> positions in the batch.

    All ranks make the same number of micro batches, of `micro` images or fewer, none of them empty: what they do
    together needs all of them.

    Raises:
        ValueError: fewer images than ranks.
    """
    if batch < world:
        raise ValueError(f"tokenizer.batch_size is {batch}: {world} ranks need at least an image each")
    most = -(-batch // world)
    count = min(-(-most // (micro or most)), batch // world)
    shares = np.array_split(np.arange(batch), world)
    return [[part.tolist() for part in np.array_split(share, count)] for share in shares]


def read_view(sets: Sequence[ShardSet], drawn: Draw, size: int) -> Pixels:
    """Return the view [size, size, 3] that was drawn."""
    return random_view(sets[drawn.shard_set][drawn.image]["image"], size, drawn.at)


def stacked(images: Iterator[Pixels], sizes: Iterable[int]) -> list[Pixels]:
    """Take the next images as micro batches [b, size, size, 3] of so many each."""
    return [np.stack(list(islice(images, count))) for count in sizes]
