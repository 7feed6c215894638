"""FLOPs of a training, and the share of the devices' peak that it uses.

FLOPs of an image, forward and backward: 6 · (weights that multiply) · positions + 12 · layers · width · positions²;
embedding tables do not multiply, causal attention is counted whole, recomputation not at all (PaLM, appendix B).
Utilisation (MFU) is these over the devices' peak in dense bfloat16.
"""

from __future__ import annotations

import torch

from train.model import TransformerConfig

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12}

BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "H800": 3.35e12, "A100": 2.0e12, "A800": 2.0e12, "L40S": 0.864e12}


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
    return _of_device(PEAK_FLOPS, device)


def bandwidth(device: torch.device) -> float | None:
    """Bytes a second of a device's memory by its maker; None where it is not known."""
    return _of_device(BANDWIDTH, device)


def _of_device(figures: dict[str, float], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((figure for part, figure in figures.items() if part in name), None)


def utilisation(config: TransformerConfig, images_per_second: float, device: torch.device) -> float | None:
    """Return the share of a device's peak (MFU) that so many images a second take; None where that is not known."""
    peak = peak_flops(device)
    return images_per_second * image_flops(config) / peak if peak else None
