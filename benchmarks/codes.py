"""Shard sets for the benchmarks: what is given, and random codes for loading and training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from data_specs import storage
from data_specs.digest import digest_of
from data_specs.manifest import merge
from data_specs.npy import array_bytes
from data_specs.receipts import commit
from data_specs.records import Identity, RangeUnit, Sample
from data_specs.spec import Spec
from data_specs.units import write_plan
from train.model import TransformerConfig

IDENTITY = Identity(stage="bench")


def write_set(uri: str, holds: str, shards: Sequence[Iterable[Sample]]) -> None:
    """Write a set of these shards; it holds "images" or "codes"."""
    units = (RangeUnit(unit=number, first=number, count=1) for number in range(len(shards)))
    plan = write_plan(uri, digest_of(IDENTITY), IDENTITY, units)
    for unit, samples in enumerate(shards):
        commit(uri, plan.digest, unit, samples)
    merge(plan, holds)


def random_codes(spec: Spec, root: str, samples: int, shards: int) -> None:
    """Write ROOT/codes/{train,val}: `samples` samples of one view in `shards` shards, and a small validation set."""
    for split, count, parts in (("train", samples, shards), ("val", 64, 1)):
        numbers = [range(part, count, parts) for part in range(parts)]
        write_set(storage.join(root, "codes", split), "codes", [[_sample(spec, n) for n in of] for of in numbers])


def random_batch(config: TransformerConfig, images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw codes int64 [images, L, D] that a model knows, and their classes, all 0."""
    shape = (images, config.num_positions, config.depth)
    codes = torch.randint(config.codebook_size, shape, device=device)
    return codes, codes.new_zeros(images)


def _sample(spec: Spec, number: int) -> Sample:
    shape = (1, *spec.codes.grid, spec.codes.depth)
    codes = np.random.default_rng(number).integers(spec.codes.codebook_size, size=shape).astype(np.uint16)
    return Sample(f"{number:08d}", {"codes.npy": array_bytes(codes), "cls": b"0", "json": b"{}"})
