"""The one place that chooses device and arithmetic: CUDA where present, else CPU; and puts images into tensors."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from data_specs.spec import Spec


def pick_device() -> torch.device:
    """CUDA device of this rank where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def training_dtype(spec: Spec, device: torch.device) -> torch.dtype:
    """The spec's arithmetic; by default bfloat16 on GPUs that have it, else float32."""
    if spec.tokenizer.dtype:
        return torch.bfloat16 if spec.tokenizer.dtype == "bfloat16" else torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def layout(device: torch.device) -> torch.memory_format:
    """Channels last on GPUs; on CPUs it costs small networks up to half their speed."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in `dtype` (float32: none) on a device."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
