"""Speed of a training between two rows of its log: images a second, share of time spent waiting for data, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Throughput:
    """Measures the steps between two rows of the log; what happens in `paused` blocks does not count."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self.since = time.monotonic()
        self.num_steps = 0
        self.waited = 0.0
        self.paused_for = 0.0

    def add_step(self, waited: float) -> None:
        """Count a step, which waited so many seconds for data."""
        self.num_steps += 1
        self.waited += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that the block takes."""
        started = time.monotonic()
        yield
        self.paused_for += time.monotonic() - started

    def report(self) -> dict[str, float]:
        """Return the figures of the stretch, which ends here."""
        taken = max(time.monotonic() - self.since - self.paused_for, 1e-9)
        figures = {
            "images_per_second": self.num_steps * self.batch_size / taken,
            "step_seconds": taken / max(self.num_steps, 1),
            "data_wait_share": self.waited / taken,
            "memory_bytes": float(peak_memory()),
        }
        self._reset()
        return figures


def peak_memory() -> int:
    """Return the most memory that this process has held, bytes: of the GPU where it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
