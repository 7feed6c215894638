"""What an arm costs: FLOPs by formula, milliseconds of one core in turns with the other arms."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.codes import random_batch
from benchmarks.rounds import in_turns
from benchmarks.train import plain_step
from data_specs import storage
from data_specs.spec import Spec
from tokenize_jobs.ranks import Ranks, common_dtype
from train.engine import build_optimizer
from train.flops import image_flops
from train.linear import packed
from train.model import DnDTransformer, config_of
from train.sampling import sample_codes
from train.weights import load_transformer

DRAWN = 32  # images at a time


class Cost(NamedTuple):
    """FLOPs of the whole training; CPU milliseconds of a step and of an image drawn."""

    flops: float
    step_ms: float
    image_ms: float


def measure(arms: Sequence[tuple[Spec, str]], rounds: int) -> list[Cost]:
    """Return the cost of each arm, given as its spec and the root where it was trained.

    Costs are medians of rounds taken in turns on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = median_seconds([_step_of(spec) for spec, _ in arms], rounds)
        images = median_seconds([_drawing_of(root) for _, root in arms], rounds)
    finally:
        torch.set_num_threads(threads)
    return [
        Cost(training_flops(spec), 1000 * step, 1000 * image / DRAWN)
        for (spec, _), step, image in zip(arms, steps, images, strict=True)
    ]


def training_flops(spec: Spec) -> float:
    """Compute the FLOPs of a training, forward and backward."""
    return spec.train.steps * spec.train.batch_size * image_flops(config_of(spec))


def median_seconds(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Measure the median CPU seconds of each work over some rounds in turns, after one that does not count."""
    for work in works:
        work()
    taken = [[seconds for _, seconds in of_round] for of_round in in_turns(works, rounds, time.process_time)]
    return [median(of_work) for of_work in zip(*taken, strict=True)]


def _step_of(spec: Spec) -> Callable[[], object]:
    """Forward, backward and AdamW of a batch of random codes, in the type that the training takes."""
    dtype = getattr(torch, common_dtype(spec.train.dtype, Ranks()))
    model = DnDTransformer(config_of(spec)).to(dtype).train()
    optimizer = build_optimizer(model, spec)
    codes, classes = random_batch(model.config, spec.train.batch_size, torch.device("cpu"))
    return lambda: plain_step(model, optimizer, codes, classes)


def _drawing_of(root: str) -> Callable[[], object]:
    """Codes of DRAWN images from the trained model."""
    model = packed(load_transformer(storage.join(root, "transformer")))
    return lambda: sample_codes(model, [0] * DRAWN)
