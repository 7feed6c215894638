"""Small operations as single kernels on a GPU, where they cost what they read and write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def fused(function: Function) -> Function:
    """The function as one kernel on a GPU, where it costs what it reads and writes; on a CPU as it stands."""

    @functools.wraps(function)
    def call(x: Tensor, *rest: Any) -> Any:
        as_it_is = not x.is_cuda or torch.compiler.is_compiling()  # what is being compiled is fused with its neighbours
        return (function if as_it_is else compiled(function))(x, *rest)

    return call  # type: ignore[return-value]


@functools.cache
def compiled(function: Function) -> Function:
    """The function as torch.compile makes it, once for all who call it."""
    return torch.compile(function)  # type: ignore[return-value]
