"""The one place that chooses device and arithmetic: CUDA where present, else CPU; bfloat16 where it pays."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch


def pick_device() -> torch.device:
    """CUDA device of this rank where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 on GPUs that have it and on CPUs that multiply it in hardware, else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in `dtype` (float32: none) on a device."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
