"""Training: a step of our loop (engine, loader, accounts, moving average) against bare PyTorch steps of the model.

Ours runs as the preset says: its ZeRO stage and arithmetic. The bare steps have the same model, AdamW and batch, which
lies in memory, in PyTorch's own mixed precision where ours is in bfloat16; eager, and compiled.
"""

from __future__ import annotations

import math
import os
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.codes import random_batch, random_codes
from benchmarks.rounds import Comparison, Work, compare
from data_specs.spec import Spec, load_spec
from tokenize_jobs.device import autocast, pick_device
from tokenize_jobs.ranks import Ranks, join_ranks
from train.engine import build_optimizer
from train.model import DnDTransformer, config_of
from train.task import TransformerTask

STEPS = 4  # measured at a time
OWN = ["train.steps=1000000", "train.checkpoint_every=1000000", "train.validate_every=1000000"]
OWN += ["train.optimizer=adamw", "train.sample_every=null"]


def train(preset: str, rounds: int, compiled: bool, overrides: list[str]) -> dict[str, Comparison]:
    """Measure the images/s of one process with all its threads, by what it is compared with.

    `compiled` adds the compiled step.
    """
    spec = load_spec(preset, [*overrides, *OWN])
    join_alone()
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as root:
        random_codes(spec, root, 2048, 2)
        task = TransformerTask(spec, root, Ranks())
        spec = task.spec  # with its arithmetic settled
        task.begin(0, spec.train.steps)

        def ours() -> int:
            for _ in range(STEPS):
                task.step(spec.train.learning_rate, math.inf)
            return STEPS * spec.train.batch_size

        baselines = {"a bare PyTorch step": _bare(spec)}
        if compiled:
            baselines["a bare compiled step"] = _bare(spec, compiled)
        return {name: compare(ours, steps, rounds) for name, steps in baselines.items()}


def join_alone() -> None:
    """Make this process the only rank of a training, of which wandb hears nothing."""
    os.environ.setdefault("DND_WANDB", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not dist.is_initialized():
        join_ranks(timedelta(minutes=5))


def _bare(spec: Spec, compiled: bool = False) -> Work:
    """Return steps of the same model with nothing around it; its batch lies in memory."""
    device = pick_device()
    model = DnDTransformer(config_of(spec)).train().to(device)
    optimizer = build_optimizer(model, spec)
    if compiled:
        model.compile()
    codes, classes = random_batch(model.config, spec.train.batch_size, device)
    dtype = getattr(torch, spec.train.dtype)

    def steps() -> int:
        for _ in range(STEPS):
            plain_step(model, optimizer, codes, classes, dtype, spec.train.clip)
        return STEPS * len(codes)

    return steps


def plain_step(
    model: DnDTransformer,
    optimizer: torch.optim.Optimizer,
    codes: Tensor,
    classes: Tensor,
    dtype: torch.dtype = torch.float32,
    clip: float | None = None,
) -> Tensor:
    """Make a step with nothing around it, in PyTorch's mixed precision; return its loss."""
    optimizer.zero_grad(set_to_none=True)
    with autocast(codes.device, dtype):
        loss: Tensor = model(codes, classes, return_loss=True).mean()
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()
