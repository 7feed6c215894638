"""Moving average of the weights, kept on this rank's part of the optimizer's float32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from train.partition import master_weights, refresh_model


class EMA:
    """average <- decay · average + (1 - decay) · weights, after each step."""

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.averages = [tensor.detach().clone() for tensor in master_weights(engine)]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights of the step just made."""
        for average, weight in zip(self.averages, master_weights(self.engine), strict=True):
            average.lerp_(weight.detach(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model's weights are the averages; collective."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self.averages, master_weights(self.engine), strict=True):
            kept = weight.detach().clone()
            weight.data.copy_(average)
            average.copy_(kept)
        refresh_model(self.engine)
