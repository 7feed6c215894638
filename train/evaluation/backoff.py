"""Counts with back-off, interpolated after Witten and Bell 1991: what a model that only looks contexts up can predict.

A gram is an int64: its context above, its symbol in the lowest `bits`.
"""

from typing import NamedTuple

import numpy as np


class Counts(NamedTuple):
    """Contexts of one kind: sorted grams with counts; their sorted contexts with totals and numbers of symbols."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    types: np.ndarray


def count_grams(grams: np.ndarray, bits: int) -> Counts:
    """Count grams int64 [n] of `bits` per symbol."""
    grams, counts = np.unique(grams, return_counts=True)
    contexts, start = np.unique(grams >> bits, return_index=True)
    types = np.diff(np.append(start, len(grams)))
    return Counts(grams, counts, contexts, np.add.reduceat(counts, start), types)


def interpolate(counts: Counts, grams: np.ndarray, shorter: np.ndarray, bits: int) -> np.ndarray:
    """Compute the probabilities of grams [n], given those under shorter contexts [n].

    An unseen context leaves them as they are.
    """
    seen = _look_up(counts.grams, counts.counts, grams)
    total = _look_up(counts.contexts, counts.totals, grams >> bits)
    types = _look_up(counts.contexts, counts.types, grams >> bits)
    return np.where(total > 0, (seen + types * shorter) / np.maximum(total + types, 1), shorter)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] == wanted, 0 where no key is; keys are sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
