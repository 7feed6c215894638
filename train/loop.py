"""Training of the transformer on code shards: `dnd train`, or `deepspeed --module train.loop --root ROOT`.

What a step reads and draws is a function of (seed, position in the data), so a resumed run goes on exactly as it would
have. Ends with 0 when finished, 75 when told to stop (SIGTERM, SIGUSR1: it saves first), 2 for what no restart mends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from data_specs import digest, storage
from data_specs.progress import Progress
from data_specs.spec import ShardInput, Spec, parse_spec
from tokenize_jobs.device import pick_device
from tokenize_jobs.fit import rate_factor
from train import checkpoint, order
from train.curve import Curve
from train.ema import EMA, full_weights
from train.engine import build_engine, config_of, grad_norm, micro_batch_of, note_plain_norm
from train.identity import STOPPED, WRONG, finished_step, identity
from train.loader import Loader, positions_of


class Run:
    """A training run: engine, moving average, data, curve, and how many steps are made."""

    def __init__(self, spec: Spec, root: str) -> None:
        self.spec, self.part, self.folder = spec, spec.train, storage.join(root, "transformer")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.micro, self.device = micro_batch_of(spec, self.world), pick_device()
        self.loader = Loader(self.part.codes, root, spec)
        self.validation = Loader([ShardInput.model_validate({"manifest": self.part.val_codes})], root, spec)
        self.engine = build_engine(spec, root, self.world)
        self.ema = EMA(self.engine, self.part.ema)
        state = checkpoint.resume(self.engine, self.ema, self.folder)
        self.step = self.saved = state["step"] if state else 0
        self.curve = Curve(self.folder, self.step, self.rank == 0, spec.name)
        self.told, self.control = False, dist.new_group(backend="gloo")
        self.waited, self.since, self.logged, self.note = 0.0, time.monotonic(), self.step, ""

    def train(self) -> bool:
        """Makes the steps that are left; False where it was told to stop, and has saved."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: setattr(self, "told", True))
        progress = Progress("train", self.part.steps, "steps", self.step)
        steps = range(self.step, self.part.steps)
        place = (self.part.batch_size, self.micro, self.rank, self.world)
        batches = self.loader.ahead(w for step in steps for w in positions_of(step, *place))
        while self.step < self.part.steps:
            self._train_step(batches)
            if self.rank == 0:
                progress.advance(1, self.note)
            if self._told_to_stop():
                self.save()
                return False
        self.save()
        if self.rank == 0:
            progress.finish(self.note)
        return True

    def _train_step(self, batches: Any) -> None:
        rate = self.part.learning_rate * rate_factor(
            self.part.schedule, self.part.warmup_steps, self.part.steps, self.step
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        losses = [self._micro_step(batches, first) for first, _ in self._positions()]
        self.ema.update()
        self.step += 1
        last = self.step == self.part.steps
        if last or self.step % self.part.log_every == 0:
            self._log(torch.stack(losses).mean(0), rate)
        if last or self.step % self.part.validate_every == 0:
            self._validate()
        if self.step % self.part.checkpoint_every == 0:
            self.save()

    def _positions(self) -> list[tuple[int, int]]:
        return positions_of(self.step, self.part.batch_size, self.micro, self.rank, self.world)

    def _micro_step(self, batches: Any, first: int) -> Tensor:
        """Forward, backward and, at the end of accumulation, the optimizer; returns the loss of each depth [D]."""
        started = time.monotonic()
        codes, classes = next(batches)
        self.waited += time.monotonic() - started
        bits = int(order.draw_bits(self.spec.seed, np.array([first]), order.NETWORK_DROPOUT)[0])
        torch.manual_seed(bits % 2**63)
        losses = self.engine(self._tensor(codes), self._tensor(classes), return_loss=True)
        mean = losses.mean()
        self._require_finite(mean.detach(), "loss")
        self.engine.backward(mean)
        note_plain_norm(self.engine)
        self.engine.step()
        return losses.detach()

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _require_finite(self, value: Tensor, name: str) -> None:
        if not torch.isfinite(value):
            raise ValueError(
                f"{self.folder}: the {name} is not finite at step {self.step + 1}: lower train.learning_rate or warm up"
            )

    def _log(self, losses: Tensor, rate: float) -> None:
        bits = self._mean_bits(losses)
        now, images = time.monotonic(), (self.step - self.logged) * self.part.batch_size
        taken = max(now - self.since, 1e-9)
        tokens = self.spec.shape.grid[0] * self.spec.shape.grid[1] * self.spec.shape.depth
        row = {
            "step": self.step,
            "bits_per_code": sum(bits) / len(bits),
            "bits_per_code_by_depth": bits,
            "grad_norm": grad_norm(self.engine),
            "rate": rate,
            "images_per_second": images / taken,
            "tokens_per_second": images * tokens / taken,
            "data_wait_share": self.waited / taken,
            "time": time.time(),
        }
        self.curve.add(row)
        self.note = f"{row['bits_per_code']:.3f} bits a code"
        self.waited, self.since, self.logged = 0.0, now, self.step

    def _mean_bits(self, losses: Tensor) -> list[float]:
        """Losses [D] in nats, each rank's mean -> bits by depth, mean over ranks."""
        total = losses.double().cpu()
        dist.all_reduce(total, group=self.control)
        return [float(x) / self.world / math.log(2) for x in total]

    def _validate(self) -> None:
        started = time.monotonic()
        plain = self._validation_bits()
        with self.ema.in_place():
            smooth = self._validation_bits()
        self.curve.add(
            {
                "step": self.step,
                "val_bits_per_code": sum(plain) / len(plain),
                "val_ema_bits_per_code": sum(smooth) / len(smooth),
                "val_bits_per_code_by_depth": plain,
                "val_ema_bits_per_code_by_depth": smooth,
                "time": time.time(),
            }
        )
        self.since += time.monotonic() - started  # not the training's time

    @torch.no_grad()
    def _validation_bits(self) -> list[float]:
        """Bits by depth on the first validation_images of the validation set, as many on each rank."""
        self.engine.eval()
        share = max(1, min(self.part.validation_images, len(self.validation)) // self.world)
        total = torch.zeros(self.spec.shape.depth, dtype=torch.float64)
        for first in range(0, share, self.micro):
            count = min(self.micro, share - first)
            codes, classes = self.validation.in_order(self.rank * share + first, count)
            losses = self.engine(self._tensor(codes), self._tensor(classes), return_loss=True)
            total += losses.double().cpu() * (count / share)
        self.engine.train()
        return self._mean_bits(total)

    def _told_to_stop(self) -> bool:
        told = torch.tensor(self.told, dtype=torch.int32)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.control)
        return bool(told)

    def save(self) -> None:
        """Writes a checkpoint of this step, unless it is the one resumed from or just written."""
        if self.saved == self.step:
            return
        self.curve.flush()
        checkpoint.save(self.engine, self.ema, self.folder, self.step, {"spec": self.spec.model_dump(mode="json")})
        self.saved = self.step
        if self.rank == 0:
            checkpoint.prune(self.folder, self.part.keep_last, self.part.keep_every)

    def export(self) -> None:
        """Writes transformer.safetensors, ema.safetensors, transformer.json and, last, `done`."""
        weights = full_weights(self.engine, self.rank == 0)
        with self.ema.in_place():
            averages = full_weights(self.engine, self.rank == 0)
        if self.rank == 0:
            with storage.writable_folder(self.folder) as folder:
                save_file(weights, folder / "transformer.safetensors")
                save_file(averages, folder / "ema.safetensors")
                (folder / "transformer.json").write_text(json.dumps(asdict(config_of(self.spec)), indent=1) + "\n")
            storage.write_text(storage.join(self.folder, "done"), json.dumps({"step": self.step}) + "\n")


def fit(spec: Spec, root: str) -> bool:
    """Trains to spec.train.steps and writes ROOT/transformer; False where it was told to stop before.

    Raises ValueError for a root made for something else, damaged data, and a loss that is not finite.
    """
    digest.claim(storage.join(root, "transformer"), identity(spec, root))
    if finished_step(root) >= spec.train.steps:
        return True
    run = Run(spec, root)
    finished = run.train()
    if finished:
        run.export()
    run.curve.finish()
    run.engine.destroy()
    dist.barrier()
    return finished


def _join_ranks() -> None:
    """Joins the ranks the launcher started; alone, it is the only one."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cuda = torch.cuda.is_available()
    for name in ("deepspeed_shm_comm", "deepspeed_ccl_comm"):  # built at start by a compiler; gloo serves a CPU as well
        deepspeed.ops.__compatible_ops__[name] = False
    deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timedelta(minutes=30), verbose=False)


def main() -> None:
    """Entry of the launcher: every rank trains on its share of each batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    root = storage.absolute(parser.parse_args().root)
    _join_ranks()
    try:
        spec = parse_spec(storage.read_text(storage.join(root, "spec.yaml")), f"{root}/spec.yaml")
        finished = fit(spec, root)
    except ValueError as error:
        _give_up(str(error))
    dist.destroy_process_group()
    sys.exit(0 if finished else STOPPED)


def _give_up(message: str) -> None:
    """Ends this rank for good with one line, also written where job.py looks; the others end with it."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    if path := os.environ.get("DND_ERROR_FILE"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(message)
    os._exit(WRONG)  # the others may wait for this rank in a collective: no orderly end is possible


if __name__ == "__main__":
    main()
