"""Inception Score over splits of 5,000 images of a seeded permutation, streamed: sums per split, which ranks add up.

Samples often lie sorted by class, and splits of a sorted set hold few classes each: the score would be far too low.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SPLIT = 5000
SEED = 2020  # torch-fidelity's


@lru_cache(4)
def shuffled_places(count: int) -> np.ndarray:
    """Return each image's place in the permutation of its set, int64 [count]; torch-fidelity draws the same one."""
    return np.argsort(np.random.RandomState(SEED).permutation(count))


@dataclass(frozen=True)
class ScoreSums:
    """For each split of 5,000 places that images lie in: [their number, sum of p log p, sums of p [C]], float64. Those
    of other images of the same set add up."""

    splits: dict[int, np.ndarray]

    @classmethod
    def of(cls, logits: np.ndarray, places: np.ndarray) -> ScoreSums:
        """Return the sums of logits [n, C] of the images at these places [n] of the permuted set."""
        values = logits.astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
        shares = np.exp(logs)
        splits = dict[int, np.ndarray]()
        for split in np.unique(places // SPLIT):
            chosen = places // SPLIT == split
            terms = [chosen.sum(), (shares[chosen] * logs[chosen]).sum(), *shares[chosen].sum(axis=0)]
            splits[int(split)] = np.array(terms)
        return cls(splits)

    def __add__(self, other: ScoreSums) -> ScoreSums:
        """Return the sums of both."""
        both = dict(self.splits)
        for split, sums in other.splits.items():
            both[split] = both.get(split, 0) + sums
        return ScoreSums(both)

    def score(self) -> float:
        """Compute the mean over the splits of exp(mean KL(p(y|x) || p(y))).

        Raises:
            ValueError: no image was added.
        """
        if not self.splits:
            raise ValueError("no images to score: the set is empty")
        return float(np.mean([_split_score(self.splits[split]) for split in sorted(self.splits)]))


def _split_score(sums: np.ndarray) -> float:
    count, entropy_sum = sums[:2]
    marginal = sums[2:] / count
    logs = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
    return float(np.exp(entropy_sum / count - (marginal * logs).sum()))
