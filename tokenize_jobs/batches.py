"""The images of each training step: a function of (seed, step), dealt to the ranks and read ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data_specs.reader import ShardSet
from tokenize_jobs.views import Pixels, random_view

STEPS_AHEAD = 2


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


def deal(batch: int, world: int, micro: int | None) -> list[list[list[int]]]:
    """Return which images of a step's `batch` each rank takes: [rank][micro batch] -> positions in the batch.

    All ranks make the same number of micro batches, of `micro` images or fewer, none of them empty: what they do
    together needs all of them. Raises ValueError for fewer images than ranks.
    """
    if batch < world:
        raise ValueError(f"tokenizer.batch_size is {batch}: {world} ranks need at least an image each")
    most = -(-batch // world)
    count = min(-(-most // (micro or most)), batch // world)
    shares = np.array_split(np.arange(batch), world)
    return [[part.tolist() for part in np.array_split(share, count)] for share in shares]


def read_batches(
    sets: Sequence[ShardSet], draws: Iterator[list[list[Draw]]], size: int, threads: int
) -> Iterator[list[Pixels]]:
    """Yield the micro batches uint8 [b, size, size, 3] of each step, for what was drawn for them, in order."""
    ahead: deque[list[list[Future[Pixels]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for step in draws:
                ahead.append([[pool.submit(_image, sets, drawn, size) for drawn in micro] for micro in step])
                if len(ahead) > STEPS_AHEAD:
                    yield _collect(ahead.popleft())
            while ahead:
                yield _collect(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(step: list[list[Future[Pixels]]]) -> list[Pixels]:
    return [np.stack([image.result() for image in micro]) for micro in step]


def _image(sets: Sequence[ShardSet], drawn: Draw, size: int) -> Pixels:
    return random_view(sets[drawn.shard_set][drawn.image]["image"], size, drawn.at)
