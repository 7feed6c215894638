"""The one place that chooses device and arithmetic: CUDA where present, else CPU; and puts images into tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

USABLE = 0.94  # of a device's memory: the rest goes to fragments
CONTEXT = 1 << 30  # bytes of a GPU that CUDA, its libraries and NCCL take
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def pick_device() -> torch.device:
    """Return the CUDA device of this rank, else the CPU; float32 is float32 there, also in convolutions."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # on by default; TF32 keeps 10 bits of 23
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def training_layout(device: torch.device) -> torch.memory_format:
    """Return channels last on GPUs; on CPUs it costs small networks half their speed. Encoding is slower in it."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context of mixed precision in `dtype` (float32: none) on a device."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; to a GPU it travels while that computes."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_device(
    images: np.ndarray, device: torch.device, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Convert uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1] on a device.

    A GPU is sent bytes, a quarter of the floats, and has the layout.
    """
    scaled = sent(images, device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    return scaled if device.type == "cpu" else scaled.contiguous(memory_format=layout)


def device_name(device: torch.device) -> str:
    """Return a device's name in digests: "cpu", or "cuda" and the GPU's model, since models round differently."""
    return "cpu" if device.type == "cpu" else f"cuda {torch.cuda.get_device_name(device)}"


def require_device(name: str) -> None:
    """Refuse a worker that is not of the kind that a set was begun on.

    Raises:
        ValueError: it is another; the line says which.
    """
    if (found := device_name(pick_device())) != name:
        raise ValueError(f"this worker computes on {found}, the set was begun on {name}: give the pool one kind")


def memory_of(device: torch.device) -> int:
    """Return the bytes of a device: a GPU's, or this rank's part of the machine's, or of the container's, memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.exists() else "max"
    memory = min([psutil.virtual_memory().total, *([] if limit == "max" else [int(limit)])])
    return memory // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def room_in(memory: float) -> float:
    """Return the bytes that tensors may take of a GPU's `memory`."""
    return USABLE * memory - CONTEXT


def largest_fitting(sizes: Iterable[int], needed: Callable[[int], float], memory: float) -> int | None:
    """Return the first of batch sizes, the largest first, that a GPU's `memory` has room for; None where it has none.

    Args:
        needed: the bytes that a batch of a size takes.
    """
    return next((size for size in sizes if needed(size) <= room_in(memory)), None)


def powers_of_two(most: int) -> list[int]:
    """Return the powers of two from `most`, which is one, down to 1."""
    return [1 << number for number in range(most.bit_length() - 1, -1, -1)]


@contextmanager
def naming_what_to_lower(key: str, value: int) -> Iterator[None]:
    """Turn the end of a device's memory into a line that names the key of the spec which takes it.

    Raises:
        ValueError: the block ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:  # on a GPU torch.OutOfMemoryError is one of them
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ValueError(f"out of memory with {key}={value}: set it lower; `dnd memory` says what fits") from error
