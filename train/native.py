"""train/native.c, compiled for the CPU at hand where there is a C compiler: what a step of sampling does with few rows
on one core, at the speed at which memory is read. Once a process, in a fraction of a second."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from data_specs.scratch import scratch_folder
from train.flops import multiplying_weights
from train.model import NORM_EPS, TransformerConfig

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
DEFINED = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
MOST_ROWS = 4  # of a product: with more, it computes longer than memory takes
LANES, WIDEST = 16, 128  # as in native.c
CACHED = 2**25  # bytes of weights that a CPU's caches may hold
POINTER = ctypes.c_void_p
LONG = ctypes.c_long
FLOAT = ctypes.c_float
ARGUMENTS = {
    "product": [*[POINTER] * 3, *[LONG] * 3],
    "attend": [*[POINTER] * 5, *[LONG] * 4],
    "rms_norm": [*[POINTER] * 3, *[LONG] * 2, FLOAT],
}


def native_suits(config: TransformerConfig, dtype: torch.dtype, threads: int) -> bool:
    """Return whether native code serves: one thread, a model that no cache holds, its lengths, and a compiler."""
    head = config.dim // config.num_heads
    lengths = not (config.dim % LANES or head % LANES) and head <= WIDEST
    large = multiplying_weights(config) * torch.empty((), dtype=dtype).itemsize > CACHED
    return threads == 1 and large and lengths and native_code(dtype) is not None


@cache
def native_code(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Compile native.c for weights of a type; None where nothing does."""
    with scratch_folder() as folder:
        library = folder / "native.so"
        compiler = shlex.split(os.environ.get("CC") or "cc")
        words = [*compiler, *FLAGS, *DEFINED[dtype], "-o", str(library), str(SOURCE), "-lm"]
        try:
            subprocess.run(words, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        code = ctypes.CDLL(str(library))  # what is mapped stays when the file goes
    for name, arguments in ARGUMENTS.items():
        function = getattr(code, name)
        function.argtypes = arguments
        function.restype = None
    return code


def _required(dtype: torch.dtype) -> ctypes.CDLL:
    code = native_code(dtype)
    if code is None:
        raise ValueError(
            "no C compiler here ($CC, cc), with which these samples were begun: install one, or draw under another "
            "name (--set sample.name=…)"
        )
    return code


class NativeLinear(nn.Module):
    """A map. Raises ValueError where there is no C compiler."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.contiguous()
        self.product = _required(weight.dtype).product

    def forward(self, x: Tensor) -> Tensor:
        rows = x.float().contiguous()
        out, into = self.weight.shape
        y = torch.empty(*x.shape[:-1], out)
        self.product(self.weight.data_ptr(), rows.data_ptr(), y.data_ptr(), out, into, rows.numel() // into)
        return y.to(x.dtype)


class NativeNorm(nn.Module):
    """RMSNorm. Raises ValueError where there is no C compiler."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.contiguous()
        self.rms_norm = _required(weight.dtype).rms_norm

    def forward(self, x: Tensor) -> Tensor:
        rows = x.float().contiguous()
        width = len(self.weight)
        y = torch.empty(x.shape)
        number = rows.numel() // width
        self.rms_norm(rows.data_ptr(), self.weight.data_ptr(), y.data_ptr(), number, width, NORM_EPS)
        return y.to(x.dtype)


def native_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend from one position, q [R, H, 1, K], to the first T of a cache's positions: views [R, H, T, K] of it."""
    queries = q.float().contiguous()
    rows, heads, length, width = keys.shape
    out = torch.empty(rows, heads, 1, width)
    tensors = (queries, keys, values, out, torch.empty(length))  # the last: scores, one after the other head's
    addresses = (tensor.data_ptr() for tensor in tensors)
    _required(keys.dtype).attend(*addresses, rows * heads, length, width, keys.stride(1))
    return out.to(q.dtype)
