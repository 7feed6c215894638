"""Moving average of the weights, kept on this rank's part of the optimizer's float32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor


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

    def load(self, averages: list[Tensor]) -> None:
        """Takes over averages that `self.averages` held. Raises ValueError where they do not fit."""
        if [a.shape for a in averages] != [a.shape for a in self.averages]:
            raise ValueError("the checkpoint's moving average does not fit the model: use another --root")
        for own, given in zip(self.averages, averages, strict=True):
            own.copy_(given)


def master_weights(engine: Any) -> list[Tensor]:
    """This rank's float32 weights, the ones the optimizer steps, in whatever pieces the ZeRO stage keeps them."""
    optimizer = engine.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):  # stages 1 and 2; stage 3
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    if hasattr(optimizer, "fp32_groups"):  # stage 0, bfloat16
        return [tensor for group in optimizer.fp32_groups for tensor in group]
    return list(engine.module.parameters())


def refresh_model(engine: Any) -> None:
    """Brings the model's weights up to date with the float32 ones after these were changed by hand; collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for number in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):
        for low, full in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, weight in zip(low, full, strict=True):
                parameter.data.copy_(weight.data)


@torch.no_grad()
def full_weights(engine: Any, keep: bool) -> dict[str, Tensor]:
    """Whole float32 weights by the released names, on the CPU; collective, but only who says `keep` gets them."""
    optimizer = engine.optimizer
    stage0 = zip(getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", []))
    masters = {id(p): w for low, full in stage0 for p, w in zip(low, full)} if hasattr(optimizer, "fp32_groups") else {}
    state = {}
    for name, parameter in engine.module.named_parameters():
        whole = masters.get(id(parameter))
        if whole is None:
            whole = safe_get_full_fp32_param(parameter)
        if keep:
            state[name] = (parameter if whole is None else whole).detach().float().cpu().view(_shape(parameter)).clone()
    return state


def _shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
