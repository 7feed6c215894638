"""Accounts of speed: images and tokens a second, share of time spent waiting for data, FLOPs used, memory.

FLOPs of an image, forward and backward: 6 · (weights that multiply) · positions + 12 · layers · width · positions²;
embedding tables do not multiply, causal attention is counted whole, recomputation not at all (PaLM, appendix B).
Utilisation (MFU) is these over the devices' peak in dense bfloat16.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from train.model import TransformerConfig

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12}


def multiplying_weights(config: TransformerConfig) -> int:
    """Weights that every position is multiplied by: those of the layers and of the outputs."""
    layer = 4 * config.dim**2 + 3 * config.dim * config.ffn_dim
    return config.num_layers * layer + config.depth * config.dim * config.codebook_size


def image_flops(config: TransformerConfig) -> float:
    """FLOPs of one image's step, forward and backward."""
    positions = config.num_positions
    dense = 6 * multiplying_weights(config) * positions
    return float(dense + 12 * config.num_layers * config.dim * positions**2)


def peak_flops(device: torch.device) -> float | None:
    """Peak of a device in dense bfloat16, FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held, bytes: of the GPU where it has one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Meter:
    """Measures the steps between two rows of the log; time spent on validation and saving is left out by `pause`."""

    def __init__(self, config: TransformerConfig, batch_size: int, world: int, device: torch.device) -> None:
        self.tokens, self.flops = config.num_positions * config.depth, image_flops(config)
        self.batch_size, self.world, self.device = batch_size, world, device
        self.peak = peak_flops(device)
        self.reset()

    def reset(self) -> None:
        """Begins a new stretch."""
        self.since, self.waited, self.paused, self.steps = time.monotonic(), 0.0, 0.0, 0

    def row(self) -> dict[str, float]:
        """Figures of the stretch, which ends here."""
        taken = max(time.monotonic() - self.since - self.paused, 1e-9)
        images = self.steps * self.batch_size / taken
        figures = {
            "images_per_second": images,
            "tokens_per_second": images * self.tokens,
            "step_seconds": taken / max(self.steps, 1),
            "data_wait_share": self.waited / taken,
            "memory_bytes": float(peak_memory(self.device)),
        }
        if self.peak:
            figures["mfu"] = images * self.flops / (self.peak * self.world)
        self.reset()
        return figures
