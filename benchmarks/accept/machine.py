"""The machine: how fast it reads and multiplies, and that float32 is float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accept.record import Row, Setting
from benchmarks.roofline import BANDWIDTH
from benchmarks.rounds import seconds_of
from benchmarks.sample import memory_bandwidth
from tokenize_jobs.device import memory_of
from train.flops import PEAK_FLOPS, gpu_model

FLOAT32 = 1e-6  # relative error of products of 1,024 terms in float32 (TF32: 3e-4)


def machine(setting: Setting) -> Iterator[Row]:
    """Yield the memory, the bandwidth, the bfloat16 products, and the error of float32 products and convolutions."""
    device = setting.device
    yield Row(part="machine", what="memory", measured=memory_of(device) / 1e9, unit="GB")
    yield _rate("bandwidth", "TB/s", memory_bandwidth(device), device, BANDWIDTH, 0.8)
    size = 256 if setting.tiny else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * size**3 / seconds_of(lambda: a @ b, device)
    yield _rate(f"bfloat16 product of {size}", "TFLOP/s", flops, device, PEAK_FLOPS, 0.6)
    yield from _float32(device)


def _rate(
    what: str, unit: str, measured: float, device: torch.device, published: dict[str, float], share: float
) -> Row:
    """Return a rate, shown in tera; a GPU is to reach a share of the published one, others only show it."""
    model = gpu_model(device)
    row = Row(part="machine", what=what, measured=measured / 1e12, unit=unit)
    if model is None:
        return row
    expected = published[model]
    return row.model_copy(update={"estimated": expected / 1e12, "least": share * expected / 1e12})


def _float32(device: torch.device) -> Iterator[Row]:
    torch.manual_seed(0)
    a, b = (torch.randn(1024, 1024, device=device) for _ in range(2))
    x, w = torch.randn(2, 64, 32, 32, device=device), torch.randn(64, 64, 3, 3, device=device)
    found = {
        "product": (a @ b, a.double() @ b.double()),
        "convolution": (F.conv2d(x, w), F.conv2d(x.double(), w.double())),
    }
    for name, (narrow, wide) in found.items():
        yield Row(part="machine", what=f"error of a float32 {name}", measured=error(narrow, wide), most=FLOAT32)


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference over that of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def reset_peak(setting: Setting) -> None:
    """Begin to measure the peak of a GPU's memory."""
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)


def peak(setting: Setting, part: str, what: str, needed: float, least: float | None, most: float) -> Iterator[Row]:
    """Yield the peak of a GPU's memory since `reset_peak` against the bytes that were counted; on a CPU nothing.

    Args:
        least: share of these that it is to reach; None, where less is as good.
        most: share of these that it may reach.
    """
    if setting.on_gpu:
        yield Row(
            part=part,
            what=what,
            measured=torch.cuda.max_memory_allocated(setting.device) / 1e9,
            unit="GB",
            estimated=needed / 1e9,
            least=None if least is None else least * needed / 1e9,
            most=most * needed / 1e9,
        )
