"""What the tokenizer loses, code by code: `dnd reconstruct`. PSNR, SSIM, LPIPS, codebook usage and size by depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from data_specs.reader import ShardSet
from data_specs.records import DepthScores, Reconstruction, ReconstructionInputs
from data_specs.shape import Shape
from data_specs.spec import Spec
from tokenize_jobs.decode import codes_by_depth, grid
from tokenize_jobs.device import to_device
from tokenize_jobs.losses import LPIPS
from train.evaluation.codes import codebook_usage, count_codes
from train.evaluation.images import reconstruction_quality

RAW_BITS = 24  # of a pixel
LPIPS_BATCH = 16
Pair = tuple[np.ndarray, np.ndarray]


def evaluate_by_depth(
    spec: Spec, split: str, originals: ShardSet, by_depth: Sequence[ShardSet], codes: ShardSet, lpips: LPIPS | None
) -> Reconstruction:
    """Score the reconstructions of a split from the first 1 ... d codes of each position, for its first images.

    originals, by_depth: image shard sets of the same keys in the same order; codes: theirs. LPIPS only with weights.

    Raises:
        ValueError: the sets are not of the same images.
    """
    num = spec.evaluate.reconstructions
    shape = spec.shape
    inputs = reconstruction_inputs(originals, by_depth[-1], num)
    usage = codebook_usage(count_codes((codes_by_depth(item["codes"], shape) for item in codes), shape.codebook_size))
    rows = []
    for depths, copies in enumerate(by_depth, 1):
        bits = bits_per_pixel(shape, depths)
        row = DepthScores(
            depth=depths,
            **dict(reconstruction_quality(pairs(originals, copies, num))),
            bits_per_pixel=bits,
            information_compression_ratio=bits / RAW_BITS,
            lpips=mean_lpips(pairs(originals, copies, num), lpips) if lpips else None,
            codebook_share_used=usage[depths - 1].share_used,
            codebook_perplexity=usage[depths - 1].perplexity,
        )
        rows.append(row)
    weights = "given" if lpips else "none: LPIPS not measured"
    return Reconstruction(split=split, inputs=inputs, depths=tuple(rows), lpips_weights=weights)


def reconstruction_inputs(originals: ShardSet, copies: ShardSet, num: int) -> ReconstructionInputs:
    """Return what decides the figures of reconstructions: both sets' content and how many images are compared."""
    return ReconstructionInputs(originals=originals.manifest.digest, reconstructions=copies.manifest.digest, num=num)


def bits_per_pixel(shape: Shape, depths: int) -> float:
    """Compute the bits a pixel of the first `depths` codes of each position.

    Over 24 they are the information compression ratio of the paper (arXiv 2410.01912, equations 1 and 3):
    depths * log2(codebook size) bits for f x f pixels of 24 bits.
    """
    return shape.grid[0] * shape.grid[1] * depths * math.log2(shape.codebook_size) / shape.image_size**2


def pairs(originals: ShardSet, copies: ShardSet, num: int) -> Iterator[Pair]:
    """Yield (original, copy) uint8 [H, W, 3] of the first `num` images.

    Raises:
        ValueError: a pair is not of the same image.
    """
    if len(originals) != len(copies):
        raise ValueError(f"{copies.uri}: {len(copies):,} images of {len(originals):,} originals: reconstruct them all")
    for index in range(min(num, len(originals))):
        original, copy = originals[index], copies[index]
        if original["__key__"] != copy["__key__"]:
            raise ValueError(f"{copies.uri}: image {index} is {copy['__key__']}, its original {original['__key__']}")
        yield original["image"], copy["image"]


@torch.inference_mode()
def mean_lpips(of: Iterator[Pair], lpips: LPIPS) -> float:
    """Compute the mean LPIPS distance of pairs."""
    total = 0.0
    count = 0
    while batch := list(islice(of, LPIPS_BATCH)):
        images, copies = (to_device(np.stack(side), torch.device("cpu")) for side in zip(*batch, strict=True))
        total = total + float(lpips(images, copies)) * len(batch)
        count = count + len(batch)
    return total / count


def depth_picture(originals: ShardSet, by_depth: Sequence[ShardSet], places: Sequence[int]) -> np.ndarray:
    """Return the rows of the same images: originals, then for each depth reconstructions and their differences.

    Grey is no difference.
    """
    real = [originals[index]["image"] for index in places]
    rows = list(real)
    for copies in by_depth:
        made = [copies[index]["image"] for index in places]
        rows += made + [difference(one, other) for one, other in zip(real, made, strict=True)]
    return grid(rows, columns=len(places))


def difference(original: np.ndarray, copy: np.ndarray) -> np.ndarray:
    """Return half of copy - original around middle grey, uint8."""
    return (128 + (copy.astype(np.int16) - original) // 2).clip(0, 255).astype(np.uint8)
