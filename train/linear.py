"""Linear maps for sampling, where a step multiplies a few rows with every weight: packed for oneDNN, or int8.

docs/sampling.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from train.model import DnDTransformer, FeedForward

PACKED_ROWS = 16  # rows that the layout is chosen for; from 2 to 64 it made no difference


class PackedLinear(nn.Module):
    """A map with its weight laid out for oneDNN's products."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_ROWS)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, activation, [], "")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The product with x, times `factor`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed, None, "mul")


class PackedFeedForward(nn.Module):
    """SwiGLU over packed maps; gate and product are done where the maps' results are written."""

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = map(PackedLinear, (feed_forward.w1, feed_forward.w2, feed_forward.w3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.w3.times(x, self.w1(x, "swish")))


class Int8Linear(nn.Module):
    """A map with int8 weights and a scale a row, for CPUs; it computes in bfloat16."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch._weight_int8pack_mm(x.flatten(0, -2).bfloat16(), self.weight, self.scale)
        return flat.view(*x.shape[:-1], -1).to(x.dtype)


def packed(model: DnDTransformer) -> DnDTransformer:
    """The model with its maps packed for sampling on a CPU; itself where packing brings nothing."""
    weight = model.tok_embeddings.weight
    # neither packed or int8 already nor a rank's share of the weights
    whole = isinstance(model.output[0], nn.Linear) and model.output[0].weight.shape == weight.shape
    fits = weight.device.type == "cpu" and weight.dtype in _packable() and torch.backends.mkldnn.is_available()
    if not (fits and whole):
        return model

    def pack(module: nn.Module) -> nn.Module | None:
        if isinstance(module, FeedForward):
            return PackedFeedForward(module)
        return PackedLinear(module) if isinstance(module, nn.Linear) else None

    return _twin(model, pack)


def _packable() -> tuple[torch.dtype, ...]:
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if fast else (torch.float32,)


def quantize_int8(model: DnDTransformer) -> DnDTransformer:
    """The model with int8 weights in its linear maps (weight-only, symmetric, a scale a row), for sampling only.

    Raises:
        ValueError: it lies on a GPU, where there is no kernel that would read int8 weights faster than bfloat16 ones.
    """
    if model.tok_embeddings.weight.device.type != "cpu":
        raise ValueError("sample.dtype int8 is for CPUs: on a GPU use bfloat16")
    return _twin(model, lambda module: Int8Linear(module) if isinstance(module, nn.Linear) else None)


def _twin(model: DnDTransformer, make: Callable[[nn.Module], nn.Module | None]) -> DnDTransformer:
    """A second model over the same tensors, the modules that `make` has an answer to replaced."""
    with torch.device("meta"):
        twin = DnDTransformer(model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    _replace(twin, make)
    return twin.eval().requires_grad_(False)


def _replace(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    for name, child in module.named_children():
        if (new := make(child)) is not None:
            setattr(module, name, new)
        else:
            _replace(child, make)
