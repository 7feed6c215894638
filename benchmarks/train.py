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

from benchmarks.codes import random_codes
from benchmarks.rounds import Comparison, compare
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
    """Images/s of one process with all its threads, by what it is compared with; `compiled` adds the compiled step."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    spec = load_spec(preset, [*overrides, *OWN])
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as root:
        random_codes(spec, root, 2048, 2)
        join_ranks(timedelta(minutes=5))
        task = TransformerTask(spec, root, Ranks())
        spec = task.spec  # with its arithmetic settled
        task.begin(0, spec.train.steps)

        def ours() -> int:
            for _ in range(STEPS):
                task.step(spec.train.learning_rate, math.inf)
            return STEPS * spec.train.batch_size

        baselines = {"a bare PyTorch step": _Bare(spec)}
        if compiled:
            baselines["a bare compiled step"] = _Bare(spec, compiled)
        return {name: compare(ours, bare.steps, rounds) for name, bare in baselines.items()}


class _Bare:
    """The same model with nothing around it; its batch lies in memory."""

    def __init__(self, spec: Spec, compiled: bool = False) -> None:
        part = spec.train
        self.spec = spec
        self.device = pick_device()
        self.model = DnDTransformer(config_of(spec)).train().to(self.device)
        self.optimizer = build_optimizer(self.model, spec)
        if compiled:
            self.model.compile()
        rows, columns = spec.shape.grid
        shape = (part.batch_size, rows * columns, spec.shape.depth)
        self.codes = torch.randint(spec.shape.codebook_size, shape, device=self.device)
        self.classes = torch.zeros(part.batch_size, dtype=torch.int64, device=self.device)

    def steps(self) -> int:
        """Makes STEPS steps and returns the images they took."""
        for _ in range(STEPS):
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, getattr(torch, self.spec.train.dtype)):
                loss = self.model(self.codes, self.classes, return_loss=True).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.train.clip)
            self.optimizer.step()
        return STEPS * len(self.codes)
