"""What a tokenizer's training measured since the last row of its log: mean losses and the health of the codebooks."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from data_specs.telemetry import Row
from tokenize_jobs.quantizer import all_sum, codebook_health, count_codes

COLLAPSED = 0.05  # share of the rows that could have been used, below which a codebook is called collapsed
log = logging.getLogger(__name__)


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio, dB, of a mean squared error of pixels in [-1, 1]."""
    return 10 * math.log10(4 / max(mse, 1e-12))


class CodeStatistics:
    """Sums over the steps since the last row. `rows` and `depth` are the codebook's; `tensors` survive a restart."""

    def __init__(self, depth: int, rows: int, device: torch.device):
        self.shape = (depth, rows)
        self.device = device
        self.was_collapsed = False
        self._reset()

    def _reset(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.num_steps: dict[str, int] = {}
        self.counts = torch.zeros(self.shape, dtype=torch.int64, device=self.device)
        self.restarts = torch.zeros(self.shape[0], dtype=torch.int64, device=self.device)

    def add(self, losses: dict[str, Tensor], codes: Tensor, restarts: Tensor) -> None:
        """Add a step: this rank's part of the losses, its codes [b, h, w, D], rows restarted at each depth [D]."""
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0) + loss
            self.num_steps[name] = self.num_steps.get(name, 0) + 1
        self.counts += count_codes(codes, self.shape[1])
        self.restarts += restarts

    def report(self) -> Row:
        """Return means over steps and ranks, codebook usage, perplexity and restarts by depth; begin anew.

        All ranks must call it. Warns once where a codebook has collapsed. Without a step there is nothing to return.
        """
        if not self.losses:
            return {}
        names = sorted(self.losses)
        sums = all_sum(torch.stack([self.losses[name] for name in names]).double())
        means = {name: total / self.num_steps[name] for name, total in zip(names, sums.tolist(), strict=True)}
        counts = all_sum(self.counts)
        usage, perplexity = codebook_health(counts)
        row = {
            **means,
            "psnr": psnr(means["mse"]),
            "usage": usage,
            "perplexity": perplexity,
            "restarts": self.restarts.tolist(),
            "collapsed": self._collapsed(usage, int(counts[0].sum())),
        }
        self._reset()
        return row

    def _collapsed(self, usage: list[float], num_codes: int) -> list[int]:
        """Depths, from 1, whose codebook has collapsed; the first time also as a warning."""
        reachable = min(1.0, num_codes / self.shape[1])
        collapsed = [depth for depth, share in enumerate(usage, 1) if share < COLLAPSED * reachable]
        if collapsed and not self.was_collapsed:
            log.warning(
                f"the codebook has collapsed at depth {', '.join(map(str, collapsed))}: less than 5 % of its rows are "
                "used. Try tokenizer.restart_unused=true or a lower tokenizer.learning_rate"
            )
        self.was_collapsed = bool(collapsed)
        return collapsed

    def tensors(self) -> dict[str, Tensor]:
        """Return what was summed so far over all ranks (all must call it), for a checkpoint."""
        losses = {f"loss_{name}": all_sum(self.losses[name].clone()) for name in sorted(self.losses)}
        return {**losses, "counts": all_sum(self.counts.clone()), "restarts": self.restarts.clone()}

    def restore(self, tensors: dict[str, Tensor], num_steps: dict[str, int], first: bool) -> None:
        """Go on from `tensors`, flat: the sums are the first rank's, so that they count once."""
        self._reset()
        self.num_steps = dict(num_steps)
        self.losses = {n: tensors[f"loss_{n}"].squeeze().to(self.device) * float(first) for n in num_steps}
        self.counts = tensors["counts"].view(self.shape).to(self.device) * int(first)
        self.restarts = tensors["restarts"].to(self.device)
