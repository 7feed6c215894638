"""The transformer in training: DeepSpeed's engine, moving average and codes. One optimizer step a call.

What a step reads and draws is a function of (seed, position in the data), so a resumed run goes on exactly as it would
have.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_specs import open_shards, storage
from data_specs.records import CheckpointFile, TaskState, TransformerState
from data_specs.sections import ShardInput
from data_specs.spec import Spec
from data_specs.telemetry import Row
from pipeline.png import encode_photo
from tokenize_jobs.checkpoint import StoredTensors
from tokenize_jobs.device import naming_what_to_lower, pick_device, sent
from tokenize_jobs.ema import MovingAverage
from tokenize_jobs.ranks import Ranks, common_dtype
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.tensors import write_safetensors
from tokenize_jobs.trainer import Step, Validation
from tokenize_jobs.weights import load_tokenizer
from train import order, partition
from train.draw import draw_grid
from train.engine import (
    build_engine,
    clip_at_stage_0,
    compiles,
    grad_norm,
    settle_micro_batch,
    was_applied,
    whole_model,
)
from train.flops import utilisation
from train.loader import Batch, Loader, positions_of
from train.model import config_of
from train.weights import CONFIG, EMA_WEIGHTS, WEIGHTS

log = logging.getLogger(__name__)


class TransformerTask:
    """A transformer in training (`trainer.Task`)."""

    def __init__(self, spec: Spec, root: str, ranks: Ranks, user_config: dict[str, Any] | None = None) -> None:
        self.ranks = ranks
        self.device = pick_device()
        spec = spec.changed("train", dtype=common_dtype(spec.train.dtype, ranks))
        self.spec = spec = settle_micro_batch(spec, ranks, self.device)
        self.section = spec.train
        self.picture_every = self.section.sample_every
        self.has_held_out = self._has_held_out(root)
        validated = [ShardInput(manifest=self.section.val_codes)] if self.has_held_out else self.section.codes[:1]
        self.validated = Loader(validated, root, spec)  # not `loader`, whose batches a thread reads ahead
        if self.has_held_out:
            self.validated.fetch_from(0)
        self.tokenizer = self._load_tokenizer(root)
        self.engine = build_engine(spec, root, ranks.world, user_config)
        self.loader = Loader(self.section.codes, root, spec, storage.join(root, "transformer", "order.json"))
        self.micro = self.engine.train_micro_batch_size_per_gpu()
        self.ema = MovingAverage(partition.master_weights(self.engine), self.section.ema)
        self.num_ema_updates = 0
        self.bits: list[Tensor] = []  # of each depth [D], steps since the last row
        self.batches: Generator[Batch, None, None] | None = None

    def _has_held_out(self, root: str) -> bool:
        """Return whether there are held-out codes to validate on; else the first of those it learns from serve."""
        if self.section.validate_every is None:
            return False
        if not len(open_shards(storage.join(root, self.section.val_codes))):
            log.warning("%s has no samples: this training is not validated on held-out codes", self.section.val_codes)
            return False
        return True

    def _load_tokenizer(self, root: str) -> RQVAE | None:
        """Return what decodes the pictures of train.sample_every: on rank 0, where they are wanted, else None."""

        def load() -> RQVAE:
            uri = storage.join(root, self.spec.tokenize.tokenizer)
            if not storage.exists(storage.join(uri, "tokenizer.json")):
                needed = "no tokenizer, which train.sample_every needs"
                raise ValueError(f"{uri}: {needed}: import one, or leave the key out")
            return load_tokenizer(uri, self.device)

        return self.ranks.on_first(load) if self.section.sample_every else None

    # ---- a step ----------------------------------------------------------------------------------------------------
    def begin(self, position: int, num_steps: int) -> None:
        """Be ready to make `num_steps` steps on the data from sample `position` on."""
        self.position = position
        if self.batches is None:
            self.loader.fetch_from(position)
        else:
            self.batches.close()
        self.batches = self.loader.ahead(self._micro_batches(num_steps))

    def _micro_batches(self, num_steps: int) -> Iterator[tuple[int, int]]:
        """Return (first position, count) of this rank's micro batches from the present position on."""
        images = num_steps * self.section.batch_size
        return positions_of(self.position, images, self.micro, self.ranks.rank, self.ranks.world)

    def step(self, rate: float, limit: float) -> Step:
        """Make one step, unless the mean loss, nats, is over `limit`, or it or the gradient is not finite."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.waited = 0.0
        with naming_what_to_lower("train.micro_batch_size", self.micro):
            losses = self._accumulate(limit)
        applied = was_applied(self.engine)
        if applied:
            self.ema.update(self.num_ema_updates)
            self.num_ema_updates += 1
        if losses.isfinite().all():
            self.bits.append(losses / math.log(2))
        self.position += self.section.batch_size
        return Step(float(losses.mean()), applied, self.waited)

    def _accumulate(self, limit: float) -> Tensor:
        """Run this rank's micro batches forward and back, and make the optimizer's step unless the loss forbids it.

        Returns:
            The mean loss of each depth over all ranks, nats, float64 [D] on the CPU.
        """
        total = torch.zeros(self.spec.codes.depth, device=self.device)
        micro_batches = list(self._micro_batches(1))
        for number, (first, _) in enumerate(micro_batches):
            losses = self._forward(first)
            total += losses.detach() / len(micro_batches)
            mean = losses.mean()
            if number + 1 == len(micro_batches):
                dist.all_reduce(total)
                mean = mean * torch.where(total.mean() / self.ranks.world <= limit, 1.0, math.nan)
            self.engine.backward(mean)  # a gradient that is not a number makes the engine leave out the step
            clip_at_stage_0(self.engine, self.section.clip)
            self.engine.step()
        return (total / self.ranks.world).double().cpu()

    def _forward(self, first: int) -> Tensor:
        """Return the losses [D] of the next micro batch, which begins at position `first`."""
        started = time.monotonic()
        assert self.batches is not None
        batch = next(self.batches)
        self.waited += time.monotonic() - started
        bits = int(order.draw_bits(self.spec.seed, np.array([first]), order.NETWORK_DROPOUT)[0])
        torch.manual_seed(bits % 2**63)
        return self._losses(batch)

    def _losses(self, batch: Batch) -> Tensor:
        codes, classes = (sent(array, self.device) for array in batch)
        losses: Tensor = self.engine(codes, classes, return_loss=True)
        return losses

    # ---- accounts --------------------------------------------------------------------------------------------------
    def report(self, images_per_second: float) -> tuple[Row, str]:
        """Return the log's row of the steps since the last one, and what it says in a few words."""
        config = config_of(self.spec)
        row: Row = {"tokens_per_second": images_per_second * config.num_positions * config.depth}
        note = f"{images_per_second:.4g} images/s"
        if (mfu := utilisation(config, images_per_second / self.ranks.world, self.device)) is not None:
            row["mfu"] = mfu
            note += f", MFU {mfu:.0%}"
        if self.bits:
            bits = torch.stack(self.bits).mean(0)
            row |= {"bits_per_code": float(bits.mean()), "bits_per_code_by_depth": bits.tolist()}
            row["grad_norm"] = grad_norm(self.engine)
            note = f"{row['bits_per_code']:.3f} bits a code, {note}"
        self.bits = []
        return row, note

    def validate(self) -> Validation:
        """Return bits a code on held-out codes, with the weights and with their moving average."""
        plain = self._bits()
        with self._averaged():
            smooth = self._bits()
        weights = float(plain.mean())
        ema = float(smooth.mean())
        if not self.has_held_out:
            return Validation({}, weights, ema)
        row = {
            "val_bits_per_code": weights,
            "val_ema_bits_per_code": ema,
            "val_bits_per_code_by_depth": plain.tolist(),
            "val_ema_bits_per_code_by_depth": smooth.tolist(),
        }
        return Validation(row, weights, ema)

    @torch.no_grad()
    def _bits(self) -> Tensor:
        """Measure bits by depth, float64 [D], on the first validation_images, the same for any number of ranks."""
        self.engine.eval()
        images = min(self.section.validation_images, len(self.validated))
        size = min(self.micro, math.ceil(images / self.ranks.world))
        starts = range(0, images, size)
        total = torch.zeros(self.spec.codes.depth, dtype=torch.float64)
        world = self.ranks.world
        for number in range(self.ranks.rank, world * math.ceil(len(starts) / world), world):
            first = starts[number % len(starts)]  # ranks without a share compute along: stage 3 needs all of them
            count = min(size, images - first)
            with self._uncompiled_if(count < size):
                losses = self._losses(self.validated.in_order(first, count))
            total += losses.double().cpu() * (count / images if number < len(starts) else 0.0)
        self.engine.train()
        dist.all_reduce(total, group=self.ranks.control)
        return total / math.log(2)

    def _uncompiled_if(self, partial: bool) -> AbstractContextManager[object]:
        """Where a batch is smaller than the others: to compile for it would take longer than it does."""
        compiled = compiles(self.spec, self.device)
        return torch.compiler.set_stance("force_eager") if partial and compiled else nullcontext()

    def picture(self) -> bytes | None:
        """Draw samples with all ranks; rank 0 returns their picture as PNG."""
        with self._averaged() if self.spec.sample.ema else nullcontext():
            drawn = draw_grid(whole_model(self.engine), self.spec, self.tokenizer, self.ranks)
        return None if drawn is None else encode_photo(drawn)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the moving average in the place of the model's weights while the block runs; collective."""
        try:
            with self.ema.in_place():
                partition.refresh_model(self.engine)
                yield
        finally:
            partition.refresh_model(self.engine)

    # ---- saving ----------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the pieces of the float32 state that this rank answers for."""
        return partition.copy_pieces(self.engine, self.ema.averages)

    def state(self) -> TransformerState:
        """Return what a resumed run needs beside the tensors."""
        return TransformerState(
            optimizer_steps=partition.optimizer_steps(self.engine),
            num_ema_updates=self.num_ema_updates,
            zero_stage=self.engine.zero_optimization_stage(),
        )

    def load(self, stored: StoredTensors, state: TaskState) -> None:
        """Take the tensors and the state of a checkpoint, whatever ranks and stage wrote it."""
        if not isinstance(state, TransformerState):
            raise ValueError(f"{stored.uri}: not a checkpoint of a transformer")
        partition.load_pieces(self.engine, self.ema.averages, stored, state.optimizer_steps)
        self.num_ema_updates = state.num_ema_updates
        self.bits = []

    def export(self, stored: StoredTensors, folder: Path) -> dict[str, CheckpointFile]:
        """Write transformer.safetensors, ema.safetensors and transformer.json from the last checkpoint."""
        shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self.engine.module.named_parameters()}
        kinds = {WEIGHTS: partition.WEIGHT, EMA_WEIGHTS: partition.AVERAGE}
        files = {name: write_safetensors(folder / name, stored.whole(kind, shapes)) for name, kind in kinds.items()}
        (folder / CONFIG).write_text(config_of(self.spec).to_json())
        return files

    def close(self) -> None:
        """End the threads that fetch shards, and the engine."""
        self.loader.close()
        self.validated.close()
        self.engine.destroy()
