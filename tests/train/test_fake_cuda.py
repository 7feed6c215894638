"""What runs on GPUs, run on CUDA tensors without bytes: devices and types agree, nothing is done 48 times over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cuda import Kernels, fake_cuda, on_cuda
from torch.utils._python_dispatch import TorchDispatchMode

from train.model import DnDTransformer, TransformerConfig, draw
from train.sampling import Sampler, Settings

TINY = TransformerConfig(4, 2, 32, 19, (3, 5), (1, 3), num_classes=4, class_dropout=0.1)
SETTINGS = Settings((1.0, 0.7), (0, 5), (1.0, 0.9), guided=True, likelihood=True)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_the_sampler_stays_on_the_gpu_and_builds_its_mask_once(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model = DnDTransformer(TINY).to(dtype).eval()
    with fake_cuda(), torch.inference_mode():
        sampler = Sampler(on_cuda(model), 3, SETTINGS)
        for length in (0, 15):
            with Kernels() as kernels:
                sampler.decoder._advance(length, 6, sampler._pick)
        assert kernels.names.count("aten.gt.Tensor") == kernels.names.count("aten.masked_fill_.Scalar") == 1
        assert kernels.names.count("aten.scaled_dot_product_attention.default") == TINY.num_layers
        assert sampler.decoder.caches[0].dtype == dtype and sampler.codes.device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_their_gradients_stay_on_the_gpu(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model = DnDTransformer(TINY).to(dtype)
    with fake_cuda():
        model = on_cuda(model)
        codes = torch.zeros(2, 15, 2, dtype=torch.int64, device="cuda")
        with Kernels():  # backward itself asks the driver; that of the outputs is computed in forward
            losses = model(codes, codes[:, 0, 0], return_loss=True)
        assert losses.device.type == "cuda" and losses.dtype == torch.float32


def test_weights_are_drawn_on_the_cpu_in_float32_wherever_and_in_whatever_type_they_lie() -> None:
    """So that stage 3, whose layers are made on the GPU in bfloat16, begins with the weights of the other stages."""
    with fake_cuda(), Drawn() as drawn:
        weight = torch.empty(4, 8, device="cuda", dtype=torch.bfloat16)
        draw(weight)
    assert drawn.found == [("cpu", torch.float32)] and weight.device.type == "cuda"


class Drawn(TorchDispatchMode):
    """Where and in what type numbers are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "normal" in str(func):
            self.found.append((args[0].device.type, args[0].dtype))
        return func(*args, **(kwargs or {}))
