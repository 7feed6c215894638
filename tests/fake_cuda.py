"""CUDA tensors without bytes or a GPU: shapes, types and devices are checked, autograd and autocast choose as on a GPU.

Backward, which asks the driver for a stream, does not run.

A build of torch for CPUs cannot name CUDA devices in autograd or indexing, since nothing answers for them there; the
meta device's guard, which does nothing, answers for both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from train import kernels

CUDA, META, DEVICE_TYPES = 1, 14, 22  # of c10::DeviceType


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside of the block new tensors have no bytes, whatever their device; what a GPU would fuse runs as it stands."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, compiled = guards[CUDA], kernels.compiled
    guards[CUDA] = before or guards[META]
    kernels.compiled = lambda function: function  # type: ignore[assignment]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        guards[CUDA], kernels.compiled = before, compiled


def on_cuda(module: nn.Module) -> nn.Module:
    """A module made on the meta device, on fake CUDA."""
    return module.to_empty(device="cuda")


class Kernels(TorchDispatchMode):
    """Counts operators that are no views, by name, and refuses those whose floating inputs differ in device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [a for a in args if isinstance(a, torch.Tensor) and a.dim()]
        assert all(tensor.device.type == "cuda" for tensor in tensors), f"{func}: {[t.device for t in tensors]}"
        if not func.is_view and not str(func).startswith("prim."):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))
