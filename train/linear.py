"""Linear maps for sampling, where a step multiplies a few rows with every weight.

Measured on one core, float32, 2304 x 768 (ms of CPU for 12 such weights): 2 rows 6.7 plain, 6.5 packed, 2.2 int8;
8 rows 15.8, 9.0, 6.8; 32 rows 18.3, 14.4, 24.2. So weights are packed from 4 rows on, and int8 pays for small batches:
at size B, batch 1 with guidance, 33 ms a step instead of 46; its most likely code was float32's in 92 % of places, and
bfloat16's in 96 % (random weights, the hardest case: entropy 8.7 of 9.7 nats; divergence 0.0013 nats).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.model import DnDTransformer

MIN_PACKED_ROWS = 4


class PackedLinear(nn.Module):
    """A float32 map with its weight laid out for MKL's product of `rows` rows; any other number of rows works too."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight, self.rows = linear.weight, rows
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, None, self.rows)


class Int8Linear(nn.Module):
    """A map with int8 weights and a scale a row; on a CPU it computes in bfloat16."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            flat = torch._weight_int8pack_mm(x.flatten(0, -2).bfloat16(), self.weight, self.scale)
            return flat.view(*x.shape[:-1], -1).to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


def packed(model: DnDTransformer, rows: int) -> DnDTransformer:
    """The model for products of `rows` rows, sharing all weights; itself where packing brings nothing."""
    weight = model.tok_embeddings.weight
    # neither int8 already nor a rank's share of the weights
    whole = getattr(model.output[0], "weight", weight).shape == weight.shape and isinstance(model.output[0], nn.Linear)
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkl.is_available()
    if not (fits and whole and rows >= MIN_PACKED_ROWS):
        return model
    return _twin(model, lambda linear: PackedLinear(linear, rows))


def quantize_int8(model: DnDTransformer) -> DnDTransformer:
    """The model with int8 weights in its linear maps (weight-only, symmetric, a scale a row), for sampling only."""
    return _twin(model, Int8Linear)


def _twin(model: DnDTransformer, make: Callable[[nn.Linear], nn.Module]) -> DnDTransformer:
    """A second model over the same tensors, its linear maps replaced."""
    with torch.device("meta"):
        twin = DnDTransformer(model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child))
    return twin.eval().requires_grad_(False)
