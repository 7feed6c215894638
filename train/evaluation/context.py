"""The baseline that a transformer has to beat: bits a code of counts that look up a position's neighbours.

A position's codes repeat what its left and upper neighbours say, so that a table of counts predicts them far better
than their histogram: only the gain over this table is the transformer's own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data_specs.records import ContextBits
from train.evaluation.backoff import count_grams, interpolate

POSITIONS = 4_000_000  # of the training split, from its beginning; more would take more than seconds
BITS = 16  # a code fits uint16
OUTSIDE = 65_535  # the neighbours of a picture's edge
HASH = np.int64(-7046029254386353131)
CONTEXT_MASK = np.int64(2**47 - 1)


def context_baseline(train: Iterable[np.ndarray], val: Iterable[np.ndarray], codebook_size: int) -> ContextBits:
    """Compute the bits a code on `val` of counts over `train`.

    The counts back off (Witten and Bell) from the longest context seen.

    The contexts of a code, each with all before it: nothing; the earlier codes of its position; the codes of the left
    neighbour; those of the upper one.

    Args:
        train: code arrays [views, h, w, d]; the first four million positions are counted.
        val: the same of the validation split, all of them.
        codebook_size: V; a code never seen has at least its share of one in V.
    """
    known, asked = _gather(train, POSITIONS), _gather(val, None)
    by_depth = tuple(_bits(known, asked, depth, codebook_size) for depth in range(known.shape[-1]))
    return ContextBits(
        bits_per_code=float(np.mean(by_depth)),
        bits_per_code_by_depth=by_depth,
        num_train_codes=known.size,
        num_val_codes=asked.size,
        definition="counts with back-off over the position's earlier codes, its left and its upper neighbour's",
    )


def _gather(arrays: Iterable[np.ndarray], limit: int | None) -> np.ndarray:
    """Code grids int64 [n, h, w, d] of arrays [views, h, w, d], up to `limit` positions."""
    grids = list[np.ndarray]()
    positions = 0
    for array in arrays:
        grids.append(array)
        positions += array[..., 0].size
        if limit is not None and positions >= limit:
            break
    if not grids:
        raise ValueError("no codes to count: the set is empty")
    return np.concatenate(grids).astype(np.int64)


def _bits(known: np.ndarray, asked: np.ndarray, depth: int, codebook_size: int) -> float:
    """Mean bits of the codes of one depth."""
    probability = np.full(asked[..., 0].size, 1 / codebook_size)
    for there, here in zip(_grams(known, depth), _grams(asked, depth), strict=True):
        probability = interpolate(count_grams(there, BITS), here, probability, BITS)
    return float(-np.log2(probability).mean())


def _grams(codes: np.ndarray, depth: int) -> list[np.ndarray]:
    """Return the codes of one depth with the hash of each context in the bits above them, int64 [n].

    There is one array for each context, the shortest context first.
    """
    left, upper = np.full_like(codes, OUTSIDE), np.full_like(codes, OUTSIDE)
    left[:, :, 1:], upper[:, 1:] = codes[:, :, :-1], codes[:, :-1]
    context = np.zeros(codes.shape[:3], np.int64)
    grams = []
    for more in (codes[..., :0], codes[..., :depth], left, upper):
        for column in range(more.shape[-1]):
            context = (context ^ more[..., column]) * HASH
            context ^= context >> 29
        grams.append((((context & CONTEXT_MASK) << BITS) | codes[..., depth]).ravel())
    return grams
