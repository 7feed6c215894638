"""Moving average of what a training learns: a tokenizer's weights and codebooks, a rank's part of a transformer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """average <- d · average + (1 - d) · tensor, after each step; d grows to `decay` as (1 + n) / (10 + n).

    So it is of use from the first steps on, where a long average would still be the initial noise.

    Args:
        tensors: what is averaged, where the training changes it.
        decay: the largest d.
    """

    def __init__(self, tensors: Iterable[Tensor], decay: float) -> None:
        self.tensors = [tensor.detach() for tensor in tensors]
        self.decay = decay
        self.averages = [tensor.clone() for tensor in self.tensors]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take in the tensors after step `number`, n, counted from 0."""
        decay = min(self.decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(self.averages, self.tensors, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in the place of the tensors while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, tensor in zip(self.averages, self.tensors, strict=True):
            kept = tensor.clone()
            tensor.copy_(average)
            average.copy_(kept)
