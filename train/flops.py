"""Weights and FLOPs of a model, and the share of the devices' peak that its training uses.

FLOPs of an image, forward and backward: 6 · (weights that multiply) · positions + 12 · layers · width · positions²;
embedding tables do not multiply, causal attention is counted whole, recomputation not at all (PaLM, appendix B).
Utilisation (MFU) is these over the devices' peak in dense bfloat16.
"""

from __future__ import annotations

import torch

from train.model import TransformerConfig

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12}


def layer_weights(config: TransformerConfig) -> int:
    """Count the weights in the matrices of the layers."""
    return config.num_layers * (4 * config.dim**2 + 3 * config.dim * config.ffn_dim)


def multiplying_weights(config: TransformerConfig) -> int:
    """Count the weights that every position is multiplied by: those of the layers and of the outputs."""
    return layer_weights(config) + config.depth * config.dim * config.codebook_size


def num_parameters(config: TransformerConfig) -> int:
    """Count the parameters of a model: weights that multiply, embedding tables and norms."""
    tables = config.codebook_size + config.num_classes + (config.class_dropout > 0)
    norms = 2 * config.num_layers + config.depth
    return multiplying_weights(config) + (tables + norms) * config.dim


def image_flops(config: TransformerConfig) -> float:
    """Return the FLOPs of one image's step, forward and backward."""
    positions = config.num_positions
    dense = 6 * multiplying_weights(config) * positions
    return float(dense + 12 * config.num_layers * config.dim * positions**2)


def gpu_model(device: torch.device) -> str | None:
    """Return which GPU of PEAK_FLOPS a device is; None for all others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((model for model in PEAK_FLOPS if model in name), None)


def utilisation(config: TransformerConfig, images_per_second: float, device: torch.device) -> float | None:
    """Return the share of a device's peak (MFU) that so many images a second take; None where that is not known."""
    model = gpu_model(device)
    return images_per_second * image_flops(config) / PEAK_FLOPS[model] if model else None
