"""What a training measured since the last row of its log: mean losses and the health of the codebooks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tokenize_jobs.quantizer import all_sum, codebook_health, count_codes

COLLAPSED = 0.05  # share of the rows that could have been used, below which a codebook is called collapsed


class Window:
    """Sums over the steps since the last row. `rows` and `depth` are the codebook's; `state` survives a restart."""

    def __init__(self, depth: int, rows: int, device: torch.device):
        self.shape, self.device = (depth, rows), device
        self.clear()

    def clear(self) -> None:
        """Begins a new window."""
        self.losses: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}
        self.counts = torch.zeros(self.shape, dtype=torch.int64, device=self.device)
        self.restarts = torch.zeros(self.shape[0], dtype=torch.int64, device=self.device)

    def add(self, losses: dict[str, Tensor], codes: Tensor, restarts: Tensor) -> None:
        """Adds a step: this rank's part of the losses, its codes [b, h, w, D], rows restarted at each depth [D]."""
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0) + loss
            self.steps[name] = self.steps.get(name, 0) + 1
        self.counts += count_codes(codes, self.shape[1])
        self.restarts += restarts

    def row(self) -> dict[str, Any]:
        """Means over steps and ranks (all ranks must call it), codebook usage, perplexity and restarts by depth."""
        names = sorted(self.losses)
        sums = all_sum(torch.stack([self.losses[name] for name in names]).double())
        means = {name: total / self.steps[name] for name, total in zip(names, sums.tolist(), strict=True)}
        counts = all_sum(self.counts)
        usage, perplexity = codebook_health(counts)
        reachable = min(1.0, int(counts[0].sum()) / self.shape[1])
        row = {
            **means,
            "psnr": 10 * math.log10(4 / max(means["mse"], 1e-12)),
            "usage": usage,
            "perplexity": perplexity,
            "restarts": self.restarts.tolist(),
            "collapsed": [depth + 1 for depth, share in enumerate(usage) if share < COLLAPSED * reachable],
        }
        self.clear()
        return row

    def state(self) -> dict[str, Any]:
        """What was summed so far over all ranks (all must call it), for a checkpoint."""
        losses = {name: all_sum(self.losses[name].clone()) for name in sorted(self.losses)}
        counts = all_sum(self.counts.clone())
        return {"losses": losses, "steps": dict(self.steps), "counts": counts, "restarts": self.restarts.clone()}

    def restore(self, state: dict[str, Any], first: bool) -> None:
        """Goes on from `state`: the sums are the first rank's, so that they count once."""
        self.steps, self.restarts = state["steps"], state["restarts"].to(self.device)
        self.losses = {name: loss.to(self.device) * float(first) for name, loss in state["losses"].items()}
        self.counts = state["counts"].to(self.device) * int(first)
