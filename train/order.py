"""The order of the data: pure functions from a position in the run to a sample, a set and random numbers.

Nothing here keeps state: whoever knows (seed, position) knows what is read there, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data_specs.sections import MIXTURE_BITS as SHARE_BITS

ROUNDS = 6  # of the Feistel network
VIEW, CLASS_DROPOUT, NETWORK_DROPOUT, SHARDS, WINDOW = 1, 2, 3, 4, 5  # streams of random numbers

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def positions_to_samples(seed: int, positions: np.ndarray, num_samples: int) -> np.ndarray:
    """Return the sample at each position k int64 [n]: permutation(seed, k // N)(k mod N), int64 [n].

    Each epoch has its own permutation of all N samples, computed without a table.

    Raises:
        ValueError: there are no samples.
    """
    if num_samples < 1:
        raise ValueError("a set without samples has no order: make it again, or take it out of train.codes")
    k = np.asarray(positions, np.int64)
    return _permute(k % num_samples, _hash(_hash(np.uint64(seed)) ^ (k // num_samples).astype(np.uint64)), num_samples)


def _permute(numbers: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """Return where the permutation of 0 … count - 1 of each key uint64 [n] takes each number int64 [n], int64 [n]."""
    half = np.uint64(max((int(count - 1).bit_length() + 1) // 2, 1))
    values = numbers.astype(np.uint64)
    outside = np.ones(numbers.shape, bool)
    while outside.any():  # walk the cycle until it is back inside; fewer than four steps on average
        values[outside] = _feistel(values[outside], keys[outside], half)
        outside = values >= np.uint64(count)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    """Apply a keyed permutation of 0 … 2^(2 half) - 1."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (_hash(keys + np.uint64(number * 0x9E3779B9 + 1) + right) & mask)
    return (left << half) | right


def draw_uniform(seed: int, positions: np.ndarray, stream: int) -> np.ndarray:
    """Draw uniform numbers in [0, 1), float64 [n], a function of (seed, stream, position k int64 [n])."""
    return (draw_bits(seed, positions, stream) >> np.uint64(11)) * 2.0**-53


def draw_bits(seed: int, positions: np.ndarray, stream: int) -> np.ndarray:
    """Draw random uint64 [n], a function of (seed, stream, position k int64 [n])."""
    k = np.atleast_1d(np.asarray(positions, np.int64)).astype(np.uint64)
    return _hash(_hash(_hash(np.array([seed], np.uint64)) + np.uint64(stream)) ^ _hash(k))


class Windows:
    """The order of one set: each epoch deals its shards into windows anew and shuffles the samples within each window.

    A window's shards are all that is read at its time, so that no more of a large set than two windows need be here.
    With one window of all shards an epoch is the permutation of all samples that `positions_to_samples` gives.

    Args:
        seed: of the order.
        sizes: samples of each shard, int64 [S].
        window: shards of a window; None: all.
    """

    def __init__(self, seed: int, sizes: np.ndarray, window: int | None) -> None:
        self.seed = seed
        self.sizes = sizes
        self.firsts = np.cumsum(sizes) - sizes
        self.num_samples = int(sizes.sum())
        self.window = min(window or len(sizes), len(sizes))
        self.per_epoch = -(-len(sizes) // self.window)
        self._deal = lru_cache(2)(self._dealt)

    def samples(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (sample, number of its window since the beginning), each int64 [n], at places int64 [n] of the set."""
        epochs, inside = np.divmod(places, self.num_samples)
        if self.per_epoch == 1:
            return positions_to_samples(self.seed, places, self.num_samples), epochs
        samples, windows = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            samples[here], windows[here] = self._of_epoch(epoch, inside[here])
        return samples, windows

    def shards(self, window: int) -> np.ndarray:
        """Return the shards of a window, int64."""
        if self.per_epoch == 1:  # asked at each end of an epoch: to deal them anew costs small sets a fifth
            return np.arange(len(self.sizes))
        epoch, number = divmod(window, self.per_epoch)
        return self._deal(epoch)[0][number * self.window : (number + 1) * self.window]

    def _dealt(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (shards as they are dealt, samples before the end of each), both int64 [S]."""
        keys = np.full(len(self.sizes), _key(self.seed, SHARDS, epoch))
        shards = _permute(np.arange(len(self.sizes)), keys, len(self.sizes))
        return shards, np.cumsum(self.sizes[shards])

    def _of_epoch(self, epoch: int, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shards, ends = self._deal(epoch)
        stops = ends[np.r_[self.window - 1 : len(ends) - 1 : self.window, len(ends) - 1]]
        windows = np.searchsorted(stops, inside, side="right")
        shuffled = np.empty_like(inside)
        for number in np.unique(windows).tolist():
            here = windows == number
            start = stops[number - 1] if number else 0
            keys = np.full(here.sum(), _key(self.seed, WINDOW, epoch * self.per_epoch + number))
            shuffled[here] = start + _permute(inside[here] - start, keys, int(stops[number] - start))
        dealt = np.searchsorted(ends, shuffled, side="right")
        before = ends[dealt] - self.sizes[shards[dealt]]
        return self.firsts[shards[dealt]] + shuffled - before, epoch * self.per_epoch + windows


def _key(seed: int, stream: int, number: int) -> np.uint64:
    """Return the key of a permutation: a function of (seed, stream, number)."""
    return draw_bits(seed, np.array([number]), stream)[0]


def choose_sets(positions: np.ndarray, weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return (set, place within that set's own sequence), each int64 [n], of positions k of a mixture.

    Sets interleave evenly by weight, and each set's places run 0, 1, 2, … without gap or repeat.
    """
    offset = np.array(positions, np.int64)
    chosen = np.zeros(offset.shape, np.int64)
    undecided = np.ones(offset.shape, bool)
    for number in range(len(weights) - 1):
        share = round(weights[number] / sum(weights[number:]) * 2**SHARE_BITS)
        before, after = _taken(offset, share), _taken(offset + 1, share)
        here = undecided & (after > before)
        offset = np.where(undecided, np.where(here, before, offset - before), offset)
        undecided &= ~here
        chosen[undecided] = number + 1
    return chosen, offset


def _taken(count: np.ndarray, share: int) -> np.ndarray:
    """Return how many of the first `count` positions a share of 2^-20 takes; exact up to 2^43 positions and beyond."""
    whole, rest = count >> SHARE_BITS, count & (2**SHARE_BITS - 1)
    return whole * share + ((rest * share) >> SHARE_BITS)


def _hash(x: np.ndarray | np.uint64) -> np.ndarray:
    """splitmix64: a bijection of uint64 that scatters its input."""
    with np.errstate(over="ignore"):
        y: np.ndarray = np.asarray(x, np.uint64) + _GOLDEN
        y = (y ^ (y >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        y = (y ^ (y >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(y ^ (y >> np.uint64(31)))
