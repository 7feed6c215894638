"""Small operations as single kernels on a GPU, and the loss of an output layer without all logits existing at once.

Shape letters: N predictions, C width, V codebook size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_CHUNK = 2**25  # logits that exist at once in the loss: 128 MiB of float32

Function = TypeVar("Function", bound=Callable[..., Any])


def fused(function: Function) -> Function:
    """Make a function one kernel on a GPU, where it costs what it reads and writes; on a CPU it stays as it is."""

    @functools.wraps(function)
    def call(x: Tensor, *rest: Any) -> Any:
        as_it_is = not x.is_cuda or torch.compiler.is_compiling()  # what is being compiled is fused with its neighbours
        return (function if as_it_is else compiled(function))(x, *rest)

    return call  # type: ignore[return-value]


@functools.cache
def compiled(function: Function) -> Function:
    """Compile a function, once for all who call it."""
    return torch.compile(function)  # type: ignore[return-value]


@fused
def prediction_error(logits: Tensor, wanted: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the summed cross-entropy [], float32, of logits [N, V] and wanted [N, 1], and softmax - one-hot [N, V]."""
    wide = logits.float()
    normalizer = wide.logsumexp(-1, keepdim=True)
    loss = (normalizer - wide.gather(-1, wanted)).sum()
    if not needs_grad:
        return loss, None
    error = wide.sub_(normalizer).exp_()
    return loss, error.scatter_add_(-1, wanted, -torch.ones_like(normalizer)).to(logits.dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of h [N, C] @ weight[V, C].T against targets [N], at most LOSS_CHUNK logits at a time.

    The gradient is linear in the incoming scalar, so forward computes it beside the loss and no logit is ever
    computed twice: the idea of Liger-Kernel's fused linear cross-entropy (arXiv 2410.10989). Backward needs no weight,
    which suits ZeRO-3, where weights are whole only inside their module's forward.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool) -> Tensor:
        loss = torch.zeros((), device=h.device)  # float32
        grad_h = torch.empty_like(h)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        rows = max(1, LOSS_CHUNK // weight.shape[0])
        for chunk, wanted, out in zip(h.split(rows), targets[:, None].split(rows), grad_h.split(rows), strict=True):
            of_chunk, error = prediction_error(F.linear(chunk, weight), wanted, needs_grad)
            loss += of_chunk
            if error is not None:
                out.copy_(error @ weight)
                grad_weight += error.T @ chunk
        ctx.save_for_backward(grad_h, grad_weight.to(weight.dtype))
        return loss / len(h)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_weight = ctx.saved_tensors
        scale = grad_loss / len(grad_h)
        return grad_h * scale.to(grad_h.dtype), grad_weight * scale.to(grad_weight.dtype), None, None
