"""What a set of codes uses of its codebook, and the bits per code that a model without any context would need."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from data_specs.records import CodebookUse, HistogramBits
from tokenize_jobs import quantizer


def count_codes(batches: Iterable[np.ndarray], codebook_size: int) -> np.ndarray:
    """Count codes per depth: int64 [depths, codebook_size]; counts of several sets or workers add up with `+`.

    Args:
        batches: integer arrays [..., depths], any number of leading axes (an item's `codes` [views, h, w, d] is one),
            read once and not kept.
        codebook_size: number of different codes.

    Raises:
        ValueError: a code outside 0 … codebook_size - 1, a changing depth, or no batch at all.
    """
    counts: np.ndarray | None = None
    for batch in batches:
        flat = np.asarray(batch).reshape(-1, batch.shape[-1]).astype(np.int64)
        if flat.size and (flat.min() < 0 or flat.max() >= codebook_size):
            raise ValueError(f"a code of {flat.max()} does not fit a codebook of {codebook_size} rows")
        if counts is not None and flat.shape[1] != len(counts):
            raise ValueError(f"codes of {flat.shape[1]} depths among codes of {len(counts)} depths")
        of_batch = quantizer.count_codes(torch.from_numpy(flat), codebook_size).numpy()
        counts = of_batch if counts is None else np.add(counts, of_batch, out=counts)
    if counts is None:
        raise ValueError("no codes to count: the set is empty")
    return counts


def entropy_bits(histogram: np.ndarray) -> np.ndarray:
    """Compute the entropy of each depth's histogram [depths, V] in bits per code -> [depths].

    No prediction by frequency alone can do better on this very set.
    """
    share = histogram / np.maximum(histogram.sum(axis=1, keepdims=True), 1)
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return -(share * logs).sum(axis=1)


def cross_entropy_bits(train: np.ndarray, val: np.ndarray) -> np.ndarray:
    """Compute the bits per code and depth that predicting `val` from the frequencies of `train` costs -> [depths].

    Both are histograms [depths, V]; train is smoothed by one count a row, so that an unseen code costs finite bits.
    """
    share = (train + 1) / (train.sum(axis=1, keepdims=True) + train.shape[1])
    return -(val * np.log2(share)).sum(axis=1) / val.sum(axis=1)


def codebook_usage(histogram: np.ndarray) -> list[CodebookUse]:
    """Measure the use of the codebook at each depth.

    It is the rows used at all, their share of the codebook, the perplexity (2 ** entropy) and the entropy
    in bits.
    """
    usage, perplexity = quantizer.codebook_health(torch.from_numpy(histogram))
    return [
        CodebookUse(
            depth=depth,
            rows_used=int((row > 0).sum()),
            share_used=usage[depth],
            perplexity=perplexity[depth],
            entropy_bits=math.log2(perplexity[depth]),
        )
        for depth, row in enumerate(histogram)
    ]


def histogram_baseline(train: np.ndarray, val: np.ndarray) -> HistogramBits:
    """Return the bits per code of a model that learned only frequencies, to put beside those of a real model.

    `bits_per_code` is the mean over depths of the cross-entropy of the train frequencies (add-one smoothed) on val:
    like the model it may look at the train split only. The entropy of val's own histogram is given beside it; it is
    the lower of the two, flattered by counting the codes it predicts.

    Args:
        train: histograms [depths, V].
        val: histograms [depths, V].
    """
    predicted = cross_entropy_bits(train, val)
    own = entropy_bits(val)
    return HistogramBits(
        bits_per_code=float(predicted.mean()),
        bits_per_code_by_depth=tuple(map(float, predicted)),
        val_entropy_bits=float(own.mean()),
        val_entropy_bits_by_depth=tuple(map(float, own)),
        num_codes=int(val.sum()),
        definition="cross-entropy on val of the per-depth code frequencies of train, add-one smoothed",
    )
