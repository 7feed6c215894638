"""How long a schedule takes on so many GPUs: an estimate from one measured step.

A step computes its share of the batch and exchanges gradients and weights:

    compute  = max(images of a GPU · FLOPs of an image / (PEAK · UTILISATION), layers · HOST_SECONDS)
    exchange = 2 · parameters / bandwidth: bfloat16 weights gathered after the step,
               + what is left of 4 · parameters / bandwidth, float32 gradients, when backward (2/3 of compute) ends

Measured on one H200 (docs/gpu.md): a step of XXL at stage 2 with 32 images keeps the GPU busy for 0.194 s, which is
UTILISATION of its peak, and the host for 0.29 s, whatever the images: HOST_SECONDS a layer, in which Python runs the
hooks of DeepSpeed and launches kernels. Bandwidths are those of NCCL on H100s: NVLink inside of a node of eight, eight
adapters of 400 Gb/s between nodes at half their peak.
"""

from __future__ import annotations

from typing import NamedTuple

from data_specs.spec import Spec
from train.flops import PEAK_FLOPS, image_flops, num_parameters
from train.memory import aligned
from train.model import config_of

PEAK = PEAK_FLOPS["H100"]
UTILISATION = 0.37
HOST_SECONDS = 0.006
NODE = 8  # GPUs
INSIDE, BETWEEN = 400e9, 200e9  # bytes a second
LOSS = 1.15  # GPU-days over those of the fewest GPUs up to which more of them are advised


class Duration(NamedTuple):
    """Of a whole schedule on `gpus` GPUs."""

    gpus: int
    images: float
    step_seconds: float
    hours: float
    gpu_days: float


def step_seconds(spec: Spec, gpus: int) -> float:
    """Return the seconds of a step of the whole batch."""
    config = config_of(spec)
    compute = spec.train.batch_size / gpus * image_flops(config) / (PEAK * UTILISATION)
    compute = max(compute, config.num_layers * HOST_SECONDS)
    if gpus == 1:
        return compute
    bandwidth = INSIDE if gpus <= NODE else BETWEEN
    weights = 2 * num_parameters(config) / bandwidth
    gradients = 4 * num_parameters(config) / bandwidth
    return compute + weights + max(gradients - compute * 2 / 3, 0.0)


def duration(spec: Spec, gpus: int) -> Duration:
    """Return how long the spec's schedule takes."""
    seconds = step_seconds(spec, gpus)
    hours = spec.train.steps * seconds / 3600
    return Duration(gpus, spec.train.batch_size / gpus, seconds, hours, hours * gpus / 24)


def durations(spec: Spec, gpus: int) -> list[Duration]:
    """Return durations for `gpus` and numbers around it that the batch divides among."""
    numbers = {gpus, *(2**n for n in range(3, max(gpus.bit_length(), 7)))}
    return [duration(spec, n) for n in sorted(numbers) if spec.train.batch_size % n == 0]


def advised(found: list[Duration]) -> int:
    """Return the most GPUs whose days are not many more than those of the fewest."""
    return max(one.gpus for one in found if one.gpu_days <= LOSS * min(other.gpu_days for other in found))


def table(spec: Spec, gpus: int) -> list[str]:
    """Return the lines to print."""
    found = durations(spec, gpus)
    rows = {
        "GPUs": [str(one.gpus) for one in found],
        "images of a GPU": [f"{one.images:g}" for one in found],
        "step, ms": [_rounded(one.step_seconds * 1e3) for one in found],
        "hours": [_rounded(one.hours) for one in found],
        "GPU-days": [_rounded(one.gpu_days) for one in found],
    }
    head = f"{spec.train.steps:,} steps of {spec.train.batch_size} images on H100s, estimated (train/duration.py):"
    return [
        head,
        *aligned(rows),
        f"advised: {advised(found)} GPUs; with more each of them has too little to do between exchanges",
    ]


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
