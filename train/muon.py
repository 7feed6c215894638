"""Muon for the matrices of the layers, AdamW for all else (`train.optimizer: muon`); ZeRO stages 0, 1 and 2.

The momentum of a matrix is made orthogonal by five Newton-Schulz steps (Jordan 2024) and scaled by 0.2 · sqrt(its
longer side), so that AdamW's rate and decay serve both (arXiv 2502.16982). At stages 1 and 2 the optimizer holds flat
partitions that cut through matrices: each step gathers the momenta once, and a rank computes those it has a part of.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from train.partition import Piece, master_weights, pieces

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at zero: singular values end between about 0.7 and 1.2
STEPS = 5


class Muon(torch.optim.AdamW):
    """Groups with `muon` set take Muon's step, the others AdamW's. Call `attach` once weights are cut."""

    def attach(self, engine: DeepSpeedEngine) -> None:
        """Learn which matrices lie where in the tensors to step."""
        masters = master_weights(engine)
        shapes = {name: tuple(p.shape) for name, p in engine.module.named_parameters()}
        self.shared = engine.zero_optimization_stage() > 0 and dist.get_world_size() > 1
        self.pieces: dict[int, list[tuple[Piece, tuple[int, ...]]]] = {}
        for piece in pieces(engine):
            shape = _square_parts(piece.name, shapes[piece.name])
            self.pieces.setdefault(id(masters[piece.tensor]), []).append((piece, shape))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step of all groups; tensors without gradient stay."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step()
        self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        found: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Piece]]] = {}  # by shape: update, weights, place
        for master in group["params"]:
            if master.grad is not None:
                update = self._gather(self._momentum(master, master.grad))
                for piece, shape in self.pieces.get(id(master), []):
                    start = piece.offset - piece.start + (dist.get_rank() * master.numel() if self.shared else 0)
                    matrix = update[start : start + math.prod(shape)].view(shape)
                    found.setdefault(shape, []).append((matrix, master.view(-1), piece))
        for shape, entries in found.items():
            directions = orthogonal(torch.stack([matrix for matrix, _, _ in entries]))
            rate = 0.2 * math.sqrt(max(shape[-2:])) * group["lr"]
            for direction, (_, weights, piece) in zip(directions, entries, strict=True):
                own = weights[piece.offset : piece.offset + piece.length]
                own.mul_(1 - group["lr"] * group["weight_decay"])
                own.sub_(direction.reshape(-1)[piece.start : piece.start + piece.length].to(own.dtype), alpha=rate)

    def _momentum(self, master: Tensor, gradient: Tensor) -> Tensor:
        """Take in the gradient and return Nesterov's momentum, flat."""
        state = self.state[master]
        if not state:
            state |= {"step": torch.zeros((), device=master.device), "exp_avg": torch.zeros_like(master)}
        state["step"] += 1
        average = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(average, MOMENTUM).view(-1)

    def _gather(self, update: Tensor) -> Tensor:
        if not self.shared:
            return update
        whole = update.new_empty(dist.get_world_size() * update.numel())
        dist.all_gather_into_tensor(whole, update)
        return whole


def _square_parts(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a weight as matrices: queries, keys and values lie in one [3 C, C], which makes three."""
    return (3, shape[0] // 3, shape[1]) if name.endswith("wqkv.weight") else shape


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximate U Vᵀ for each matrix U S Vᵀ of [..., m, n]; in bfloat16 on a GPU."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
