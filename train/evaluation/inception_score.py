"""Inception Score over splits of 5,000 images of a seeded permutation, streamed: sums per split, which ranks add up.

Samples often lie sorted by class, and splits of a sorted set hold few classes each: the score would be far too low.
"""

from functools import lru_cache

import numpy as np

SPLIT = 5000
SEED = 2020  # torch-fidelity's


@lru_cache(4)
def shuffled_places(count: int) -> np.ndarray:
    """The place of each image of a set in its permutation, int64 [count]; the one that torch-fidelity draws."""
    return np.argsort(np.random.RandomState(SEED).permutation(count))


class ScoreSums:
    """For each split of 5,000 places: number of images, sum of p [C] and sum of p log p, in float64."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.splits: dict[int, np.ndarray] = {}  # [count, sum of p log p, sum of p ...]

    def add(self, logits: np.ndarray, places: np.ndarray) -> None:
        """Take in logits [n, C] of the images at these places [n] of the permuted set."""
        values = logits.astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
        shares = np.exp(logs)
        split_of_image = places // SPLIT
        for split in np.unique(split_of_image):
            chosen = split_of_image == split
            terms = [chosen.sum(), (shares[chosen] * logs[chosen]).sum(), *shares[chosen].sum(axis=0)]
            self._add_sums(int(split), np.array(terms))

    def merge(self, other: "ScoreSums") -> None:
        """Take in the sums of other images of the same set."""
        for split, sums in other.splits.items():
            self._add_sums(split, sums)

    def score(self) -> float:
        """Mean over the splits of exp(mean KL(p(y|x) || p(y))). Raises ValueError where no image was added."""
        if not self.splits:
            raise ValueError("no images to score: the set is empty")
        return float(np.mean([_split_score(self.splits[split]) for split in sorted(self.splits)]))

    def _add_sums(self, split: int, sums: np.ndarray) -> None:
        self.splits[split] = self.splits.get(split, 0) + sums


def _split_score(sums: np.ndarray) -> float:
    count = sums[0]
    entropy_sum = sums[1]
    marginal = sums[2:] / sums[0]
    logs = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
    return float(np.exp(entropy_sum / count - (marginal * logs).sum()))
