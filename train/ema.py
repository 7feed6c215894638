"""Moving average of the weights, kept on this rank's part of the optimizer's float32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from train.partition import master_weights, refresh_model

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class MovingAverage:
    """average <- d · average + (1 - d) · weights, after each step; d grows to `decay` as (1 + n) / (10 + n).

    So it is of use from the first steps on, where a long average would still be the initial noise.
    """

    def __init__(self, engine: DeepSpeedEngine, decay: float) -> None:
        self.engine = engine
        self.decay = decay
        self.num_updates = 0
        self.averages = [tensor.detach().clone() for tensor in master_weights(engine)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of the step just made."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for average, weight in zip(self.averages, master_weights(self.engine), strict=True):
            average.lerp_(weight.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in the place of the model's weights while the block runs; collective."""
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
