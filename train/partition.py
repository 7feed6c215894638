"""This rank's part of the float32 training state, by parameter name, under every ZeRO stage; to and from checkpoints.

The optimizer keeps its weights as a few flat tensors whose cut depends on stage and world size. A `Piece` says which
run of which parameter lies where in them, so that whoever goes by pieces (checkpoints, exports) knows no stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tokenize_jobs.checkpoint import StoredTensors
from tokenize_jobs.tensors import to_host

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WEIGHT, AVERAGE = "weight", "ema"  # kinds of a checkpoint's tensors; the others are the optimizer's moments
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW has both, Muon the first
Kinds = Mapping[str, Sequence[Tensor | None]]  # tensors like the master weights by kind


class Piece(NamedTuple):
    """Elements start … start + length of the flattened parameter `name` lie at `offset` of master tensor `tensor`."""

    name: str
    start: int
    length: int
    tensor: int
    offset: int


def master_weights(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return this rank's float32 weights, those the optimizer steps, in whatever tensors the ZeRO stage keeps them."""
    optimizer = engine.optimizer
    stages = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
    for name in stages:  # 1 and 2; 1 where bfloat16's gradients add up in float32; 3
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def pieces(engine: DeepSpeedEngine) -> list[Piece]:
    """Return all pieces in this rank's master weights. At stage 0 every rank holds every parameter."""
    optimizer = engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if hasattr(optimizer, "fp16_groups"):
        return list(_stage3(optimizer, names))
    for groups in ("bit16_groups", "bf16_groups"):
        if hasattr(optimizer, groups):
            return list(_stage12(getattr(optimizer, groups), names))
    return [Piece(names[id(p)], 0, p.numel(), number, 0) for number, p in enumerate(master_weights(engine))]


def own_pieces(engine: DeepSpeedEngine) -> list[Piece]:
    """Return the pieces that this rank answers for: over all ranks they cover every parameter once."""
    held = pieces(engine)
    return held if engine.zero_optimization_stage() else held[dist.get_rank() :: dist.get_world_size()]


def _stage12(groups: Any, names: dict[int, str]) -> Iterator[Piece]:
    for tensor, group in enumerate(groups):
        for parameter in group:
            if parameter._hp_mapping is not None:  # None: it lies on other ranks
                here = parameter._hp_mapping.lp_fragment_address
                there = parameter._hp_mapping.hp_fragment_address
                yield Piece(names[id(parameter)], here.start, here.numel, tensor, there.start)


def _stage3(optimizer: Any, names: dict[int, str]) -> Iterator[Piece]:
    rank = dist.get_rank()
    for group in optimizer.fp16_groups:
        for parameter in group:
            tensor, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = rank * share
            length = min(share, parameter.ds_numel - start)  # the last ranks hold padding
            if length > 0:
                yield Piece(names[id(parameter)], start, length, tensor, offset)


def view(tensor: Tensor, piece: Piece) -> Tensor:
    """Return a piece's elements [length] within its tensor, one like that of `master_weights`, sharing its memory."""
    return tensor.detach().view(-1)[piece.offset : piece.offset + piece.length]


def moments(engine: DeepSpeedEngine) -> dict[str, list[Tensor | None]]:
    """Return the optimizer's moments by kind, each like `master_weights`; None for a tensor that made no step."""
    state = basic_optimizer(engine).state
    held = [state.get(master, {}) for master in master_weights(engine)]
    return {kind: [tensors.get(kind) for tensors in held] for kind in MOMENTS}


def set_moments(engine: DeepSpeedEngine, given: dict[str, list[Tensor | None]], steps: int) -> None:
    """Give the optimizer its moments, tensors like `master_weights`, and the number of steps it has made."""
    optimizer = basic_optimizer(engine)
    for number, master in enumerate(master_weights(engine)):
        device = master.device if optimizer.defaults.get("fused") else "cpu"
        count = torch.tensor(float(steps), dtype=torch.float32, device=device)
        held = {kind: tensors[number] for kind, tensors in given.items() if tensors[number] is not None}
        optimizer.state[master] = {"step": count, **held} if held else {}


def optimizer_steps(engine: DeepSpeedEngine) -> int:
    """Count the steps that the optimizer has made: those asked for less those it skipped."""
    state = basic_optimizer(engine).state.get(master_weights(engine)[0], {})
    return int(state["step"]) if "step" in state else 0


def basic_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """Return the PyTorch optimizer inside DeepSpeed's."""
    optimizer = engine.optimizer
    return getattr(optimizer, "optimizer", optimizer)


@torch.no_grad()
def refresh_model(engine: DeepSpeedEngine) -> None:
    """Bring the model's weights up to date with the float32 ones after these were changed by hand; collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer._partition_all_parameters()  # as its own step does: small ones stay whole on every rank otherwise
        for number in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


# ---- to and from checkpoints ---------------------------------------------------------------------------------------
@torch.no_grad()
def copy_pieces(engine: DeepSpeedEngine, averages: list[Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU of the pieces that this rank answers for, by `kind/parameter/first element`."""
    kinds: Kinds = {WEIGHT: master_weights(engine), AVERAGE: averages, **moments(engine)}
    views = {
        f"{kind}/{piece.name}/{piece.start}": view(tensor, piece)
        for piece in own_pieces(engine)
        for kind, tensors in kinds.items()
        if (tensor := tensors[piece.tensor]) is not None
    }
    return to_host(views)


@torch.no_grad()
def load_pieces(engine: DeepSpeedEngine, averages: list[Tensor], stored: StoredTensors, steps: int) -> None:
    """Fill this rank's weights, averages and moments from a checkpoint, whatever ranks and stage wrote it.

    Args:
        steps: the optimizer's, of the checkpoint.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    masters = master_weights(engine)
    held = pieces(engine)
    filled: dict[str, list[Tensor | None]] = {kind: [None] * len(masters) for kind in MOMENTS}
    for kind, tensors in filled.items():
        for piece in held:
            if (kind, piece.name) in stored.runs and tensors[piece.tensor] is None:
                tensors[piece.tensor] = torch.zeros_like(masters[piece.tensor])
    kinds: Kinds = {WEIGHT: masters, AVERAGE: averages, **filled}
    for kind, targets in kinds.items():
        for piece in held:
            if (tensor := targets[piece.tensor]) is not None:
                view(tensor, piece).copy_(stored.read(kind, piece.name, piece.start, piece.length))
    set_moments(engine, filled, steps)
    refresh_model(engine)
