"""A task for the trainer's tests: a line through points, whose data or weights can be spoiled at will."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_specs.records import CheckpointFile, Identity, NoState, TaskState
from data_specs.spec import Spec, load_spec
from tokenize_jobs.checkpoint import StoredTensors
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.tensors import write_safetensors
from tokenize_jobs.trainer import Job, Step, Validation, fit


class LinearTask:
    """Learns y = 3 x by gradient descent. `bad` are batches whose loss is NaN; `spoil_at` is a step that breaks all."""

    picture_every = None

    def __init__(self, bad: set[int] | None = None, spoil_at: int | None = None, average: float | None = None) -> None:
        self.weight, self.bad, self.spoil_at, self.average = torch.zeros(1), bad or set(), spoil_at, average
        self.taken: list[int] = []

    def begin(self, position: int, num_steps: int) -> None:
        self.batch = position // 8

    def step(self, rate: float, limit: float) -> Step:
        number, self.batch = self.batch, self.batch + 1
        self.taken.append(number)
        x = torch.rand(8, generator=torch.Generator().manual_seed(number))
        error = self.weight * x - 3 * x
        loss = math.nan if number in self.bad else float(error.square().mean())
        applied = loss <= limit
        if applied:
            self.weight -= rate * (2 * error * x).mean()
        if number == self.spoil_at:
            self.weight.fill_(math.inf)
        return Step(loss, applied, 0.0)

    def report(self, images_per_second: float) -> tuple[dict[str, Any], str]:
        return {"weight": float(self.weight), "never": math.nan}, ""

    def validate(self) -> Validation:
        error = float((self.weight - 3).abs())
        return Validation({"val_error": error}, error, None if self.average is None else abs(self.average - 3))

    def picture(self) -> bytes | None:
        return None

    def tensors(self) -> dict[str, Tensor]:
        return {"weight/w/0": self.weight.clone()}

    def state(self) -> NoState:
        return NoState()

    def load(self, stored: StoredTensors, state: TaskState) -> None:
        self.weight = stored.tensor("weight", "w", (1,))

    def export(self, stored: StoredTensors, folder: Path) -> dict[str, CheckpointFile]:
        return {"line.safetensors": write_safetensors(folder / "line.safetensors", {"w": self.weight})}

    def close(self) -> None:
        pass


def spec_of(*overrides: str) -> Spec:
    part = [f"train.{line}" for line in ("steps=40", "batch_size=8", "learning_rate=0.3", "checkpoint_every=10")]
    part += [f"train.{line}" for line in ("log_every=1", "validate_every=20", "schedule=constant", "warmup_steps=0")]
    return load_spec("demo", [*part, *overrides])


def job_of(folder: str, spec: Spec) -> Job:
    return Job("train", folder, spec.train, spec, ("train",), Identity(stage="line"))


def train_line(folder: str, task: LinearTask, *overrides: str) -> bool:
    """Trains a line in this process; returns what `fit` returns."""

    def build(ranks: Ranks) -> LinearTask:
        return task

    return fit(job_of(folder, spec_of(*overrides)), build)
