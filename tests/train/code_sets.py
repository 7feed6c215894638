"""Code shard sets and small specs for the tests of training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from data_specs.digest import digest_of
from data_specs.manifest import merge
from data_specs.npy import array_bytes
from data_specs.receipts import commit
from data_specs.records import Identity, RangeUnit, Sample
from data_specs.spec import Spec, load_spec
from data_specs.units import write_plan

SHAPE = (4, 4, 2)


def write_codes(
    uri: str,
    shards: list[int],
    shape: tuple[int, ...] = SHAPE,
    vocabulary: int = 16,
    views: int = 1,
    classes: int = 3,
    noise: Collection[int] = (),
) -> None:
    """A set of shards with the given numbers of samples. Codes rise, which can be learned, but for samples `noise`."""

    def sample(number: int) -> Sample:
        codes = np.random.default_rng(number).integers(vocabulary, size=(views, *shape)).astype(np.uint16)
        if number not in noise:
            codes = np.sort(codes.reshape(views, -1), axis=1).reshape(codes.shape)
        fields = {"codes.npy": array_bytes(codes), "cls": b"%d" % (number % classes), "json": b"{}"}
        return Sample(f"s{number:06d}", fields)

    write_set(uri, "codes", shards, sample)


def write_set(uri: str, holds: str, shards: list[int], sample: Callable[[int], Sample]) -> None:
    """A set of shards with the given numbers of samples, which are numbered through; it holds "images" or "codes"."""
    units = [RangeUnit(unit=number, first=0, count=count) for number, count in enumerate(shards)]
    plan = write_plan(uri, digest_of({"uri": uri}), Identity(stage="test"), units)
    numbers = itertools.count()
    for unit, count in enumerate(shards):
        commit(uri, plan.digest, unit, map(sample, itertools.islice(numbers, count)))
    merge(plan, holds)


NO_DROPOUT = ("transformer.token_dropout=0", "transformer.residual_dropout=0", "transformer.ffn_dropout=0")


def tiny_spec(*overrides: str) -> Spec:
    """Two layers of width 32 over 4x4x2 codes of 16, float32, eight images a step."""
    tiny = [
        "shape={image_size: 32, grid: [4, 4], depth: 2, codebook_size: 16}",
        "tokenizer.patch=1",
        "tokenizer.channel_multipliers=[1, 2, 2, 4]",
        "transformer={num_layers: 2, num_heads: 2, width: 32, head_layers: [0, 1], num_classes: 3, class_dropout: 0.1}",
        "train={steps: 20, batch_size: 8, dtype: float32, zero_stage: 1, learning_rate: 0.003, ema: 0.9, log_every: 1, "
        "checkpoint_every: 8, validate_every: 10, validation_images: 8, max_restarts: 0, schedule: constant, "
        "warmup_steps: 0}",
    ]
    return load_spec("demo", [*tiny, *overrides])


def make_root(folder: Path) -> str:
    """A root with code sets, as `dnd tokenize` leaves it."""
    write_codes(str(folder / "codes/train"), [20, 17])
    write_codes(str(folder / "codes/val"), [9])
    return str(folder)
