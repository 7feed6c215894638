"""Training: a step of our loop (engine, loader, accounts, moving average) against a bare PyTorch step of the model."""

from __future__ import annotations

import math
import os
import tempfile
from datetime import timedelta

import torch

from benchmarks.codes import random_codes
from benchmarks.rounds import Comparison, compare
from data_specs.spec import Spec, load_spec
from tokenize_jobs.device import pick_device
from tokenize_jobs.ranks import Ranks, join_ranks
from train.engine import build_optimizer, config_of
from train.model import DnDTransformer
from train.task import TransformerTask

STEPS = 4  # measured at a time
OWN = ["train.steps=1000000", "train.checkpoint_every=1000000", "train.validate_every=1000000", "train.zero_stage=0"]
OWN += ["train.optimizer=adamw", "train.sample_every=null"]


def train(preset: str, rounds: int, batch: int | None, overrides: list[str]) -> Comparison:
    """Images/s of one process with all its threads; ours at ZeRO stage 0, the same model, AdamW and batch."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    spec = load_spec(preset, [*overrides, *OWN, *([f"train.batch_size={batch}"] if batch else [])])
    with tempfile.TemporaryDirectory(prefix="dnd-bench-") as root:
        random_codes(spec, root, 2048, 2)
        join_ranks(timedelta(minutes=5))
        task = TransformerTask(spec, root, Ranks())
        bare = _Bare(task.spec)
        task.begin(0, spec.train.steps)

        def ours() -> int:
            for _ in range(STEPS):
                task.step(spec.train.learning_rate, math.inf)
            return STEPS * spec.train.batch_size

        return compare(ours, bare.steps, rounds)


class _Bare:
    """The same model, device and type with nothing around it; its batch lies in memory."""

    def __init__(self, spec: Spec) -> None:
        part, self.spec = spec.train, spec
        device, dtype = pick_device(), torch.bfloat16 if part.dtype == "bfloat16" else torch.float32
        self.model = DnDTransformer(config_of(spec)).to(device, dtype).train()
        self.optimizer = build_optimizer(self.model, spec)
        rows, columns = spec.shape.grid
        shape = (part.batch_size, rows * columns, spec.shape.depth)
        self.codes = torch.randint(spec.shape.codebook_size, shape, device=device)
        self.classes = torch.zeros(part.batch_size, dtype=torch.int64, device=device)

    def steps(self) -> int:
        """Makes STEPS steps and returns the images they took."""
        for _ in range(STEPS):
            self.optimizer.zero_grad(set_to_none=True)
            self.model(self.codes, self.classes, return_loss=True).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.train.clip)
            self.optimizer.step()
        return STEPS * len(self.codes)
