"""Tensors into safetensors files: streamed, hashed on the way, whole or absent, and never with a number not finite."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_specs.records import CheckpointFile

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


class NotFiniteError(ValueError):
    """A tensor that was to be written holds NaN or infinity."""


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> CheckpointFile:
    """Write tensors to a file that appears whole or not at all, hashed as it is written.

    Returns:
        Size and sha256 of the file.

    Raises:
        NotFiniteError: a tensor holds a number that is not finite; the message names it.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise NotFiniteError(f"{path}: {name} holds numbers that are not finite")
    found = hashlib.sha256()
    size = 0
    with whole_file(path) as file:
        for part in _parts(tensors):
            file.write(part)
            found.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return CheckpointFile(bytes=size, sha256=found.hexdigest())


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start = end
        end = end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        yield tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU; those of a GPU's run side by side into pinned memory, which is used again each time."""
    copies = {
        name: torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite, without a copy of it."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = torch.aminmax(tensor.detach())
    return bool(least.isfinite() and most.isfinite())


def find_not_finite(path: Path) -> Iterable[str]:
    """Name each tensor of a file that holds a number not finite.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            return [name for name in file.keys() if not is_finite(file.get_tensor(name))]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from None


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, which appears under its name only once it is complete."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def digest_of_weights(network: nn.Module) -> str:
    """Return the SHA-256 (hex) over the names and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
