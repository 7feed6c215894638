"""Training of the transformer on code shards: `dnd train`, or over nodes `infra/launch.sh --root ROOT`.

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
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_specs import digest, storage
from data_specs.curve import Curve
from data_specs.progress import Progress
from data_specs.root import read_spec, record_spec, spec_of
from data_specs.spec import ShardInput, Spec
from tokenize_jobs.decode import png
from tokenize_jobs.device import pick_device
from tokenize_jobs.fit import rate_factor
from tokenize_jobs.weights import load_tokenizer
from train import checkpoint, order
from train.draw import draw_grid
from train.ema import EMA
from train.engine import before_step, build_engine, config_of, grad_norm, read_user_config, was_applied, whole_model
from train.guard import Guard, watch
from train.identity import STOPPED, WRONG, finished_step, identity
from train.loader import Batch, Loader, positions_of
from train.metrics import Meter
from train.weights import CONFIG, EMA_WEIGHTS, WEIGHTS, write_safetensors


class Run:
    """A training run: engine, moving average, data, and where it is.

    `step` counts steps, `position` samples consumed; both go on together except where a return to a checkpoint leaves
    out the data that led to it.
    """

    def __init__(self, spec: Spec, root: str, user_config: dict[str, Any] | None = None) -> None:
        self.spec, self.part, self.folder = spec, spec.train, storage.join(root, "transformer")
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), pick_device()
        self.loader = Loader(self.part.codes, root, spec)
        self.validation = Loader([ShardInput.model_validate({"manifest": self.part.val_codes})], root, spec)
        self.control = dist.new_group(backend="gloo")
        self.tokenizer = self._load_tokenizer(root)
        self.engine = build_engine(spec, root, self.world, user_config)
        self.micro = self.engine.train_micro_batch_size_per_gpu()
        self.ema = EMA(self.engine, self.part.ema)
        self.saver = checkpoint.Saver(self.engine, self.ema, self.folder)
        self._take_place(checkpoint.resume(self.engine, self.ema, self.folder) or {})
        self.loader.fetch_from(self.position)
        self.validation.fetch_from(0)
        self.rollbacks, self.told, self.note = 0, False, ""
        self.curve = Curve(self.folder, self.step, self.rank == 0, spec.name)
        self.meter = Meter(config_of(spec), self.part.batch_size, self.world, self.device)
        self.bits: list[Tensor] = []  # of each depth [D], steps since the last row

    def _load_tokenizer(self, root: str) -> Any:
        """What decodes the pictures of train.sample_every: on rank 0, where they are wanted, else None."""
        if self.rank or not self.part.sample_every:
            return None
        uri = storage.join(root, self.spec.tokenize.tokenizer)
        if not storage.exists(storage.join(uri, "tokenizer.json")):
            raise ValueError(f"{uri}: no tokenizer, which train.sample_every needs: import one, or leave the key out")
        return load_tokenizer(uri, self.device)

    def _take_place(self, state: checkpoint.State) -> None:
        self.step, self.position = state.get("step", 0), state.get("position", 0)
        self.saved = self.step
        self.guard = Guard(self.part.spike, self.part.max_skips, state.get("guard"))

    # ---- training --------------------------------------------------------------------------------------------------
    def train(self) -> bool:
        """Makes the steps that are left; False where it was told to stop, and has saved."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: setattr(self, "told", True))
        self.last_sign = time.monotonic()
        watch(lambda: self.last_sign, self.part.rank_timeout)
        progress = Progress("train", self.part.steps, "steps", self.step)
        batches = self.batches()
        while self.step < self.part.steps:
            if self.train_step(batches):
                self._roll_back()
                batches = self.batches()
            if self.rank == 0:
                progress.advance(self.step - progress.done, self.note)
            self.last_sign = time.monotonic()
            if self._agree_to_stop():
                self.save()
                self.finish_saving()
                self.last_sign = math.inf
                return False
        self.save()
        self.finish_saving()
        self.last_sign = math.inf
        if self.rank == 0:
            progress.finish(self.note)
        return True

    def batches(self) -> Iterator[Batch]:
        """This rank's micro batches from the present position on, read one ahead."""
        size = self.part.batch_size
        starts = range(self.position, self.position + (self.part.steps - self.step) * size, size)
        return self.loader.ahead(w for start in starts for w in self._places(start))

    def _places(self, position: int) -> list[tuple[int, int]]:
        return positions_of(position, self.part.batch_size, self.micro, self.rank, self.world)

    def train_step(self, batches: Iterator[Batch]) -> bool:
        """One step of the optimizer; True when too many in a row had to be skipped."""
        rate = self._set_rate()
        losses = self._accumulate(batches)
        applied = was_applied(self.engine)
        if applied:
            self.ema.update()
        self.step += 1
        self.position += self.part.batch_size
        self.meter.steps += 1
        self.bits.append(losses / math.log(2))
        loss = float(losses.mean())
        if not applied and self.rank == 0:
            print(f"train: step {self.step} left out: loss {loss:.4g}, limit {self.guard.limit:.4g}", file=sys.stderr)
        if self.guard.note(loss, applied):
            return True
        self._periodic(rate)
        return False

    def _periodic(self, rate: float) -> None:
        """What is due at this step: a row of the log, validation, a picture, a checkpoint."""
        last = self.step == self.part.steps
        if last or self.step % self.part.log_every == 0:
            self._log(rate)
        started = time.monotonic()
        if last or self.step % self.part.validate_every == 0:
            self._validate()
        if self.part.sample_every and (last or self.step % self.part.sample_every == 0):
            self._draw()
        if self.step % self.part.checkpoint_every == 0:
            self.save()
        self.meter.paused += time.monotonic() - started

    def _set_rate(self) -> float:
        part = self.part
        rate = part.learning_rate * rate_factor(part.schedule, part.warmup_steps, part.steps, self.step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _accumulate(self, batches: Iterator[Batch]) -> Tensor:
        """Forward and backward of this rank's micro batches, and the optimizer's step unless the loss forbids it.

        Returns the mean loss of each depth over all ranks, nats, float64 [D] on the CPU.
        """
        total = torch.zeros(self.spec.shape.depth, device=self.device)
        places = self._places(self.position)
        for number, (first, _) in enumerate(places):
            losses = self._forward(batches, first)
            total += losses.detach() / len(places)
            mean = losses.mean()
            if number + 1 == len(places):
                dist.all_reduce(total)
                mean = mean * torch.where(total.mean() / self.world <= self.guard.limit, 1.0, math.nan)
            self.engine.backward(mean)  # a gradient that is not a number makes the engine leave out the step
            before_step(self.engine, self.part.clip)
            self.engine.step()
        return (total / self.world).double().cpu()

    def _forward(self, batches: Iterator[Batch], first: int) -> Tensor:
        """Losses [D] of the next micro batch, which begins at position `first`."""
        started = time.monotonic()
        codes, classes = next(batches)
        self.meter.waited += time.monotonic() - started
        bits = int(order.draw_bits(self.spec.seed, np.array([first]), order.NETWORK_DROPOUT)[0])
        torch.manual_seed(bits % 2**63)
        losses: Tensor = self.engine(self._tensor(codes), self._tensor(classes), return_loss=True)
        return losses

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _roll_back(self) -> None:
        """Loads the last checkpoint and goes on behind the data that spoiled the steps since."""
        self.finish_saving()
        self.rollbacks += 1
        state = checkpoint.resume(self.engine, self.ema, self.folder)
        if state is None or self.rollbacks > self.part.max_rollbacks:
            raise ValueError(
                f"{self.folder}: the loss is not finite, or leaps, at step {self.step}, "
                f"{self.part.max_skips} steps in a row, also after {self.rollbacks - 1} returns to a checkpoint: "
                "lower train.learning_rate, lengthen train.warmup_steps, or look at the data with `dnd verify`"
            )
        position, skipped = self.position, self.guard.skipped
        self._take_place(state)
        self.position, self.guard.skipped = position, skipped
        self.curve.cut(self.step)
        if self.rank == 0:
            print(f"train: back to step {self.step}; data before sample {position} is left out", file=sys.stderr)

    # ---- accounts --------------------------------------------------------------------------------------------------
    def _log(self, rate: float) -> None:
        bits = torch.stack(self.bits).mean(0)
        self.bits = []
        row = {
            "step": self.step,
            "position": self.position,
            "bits_per_code": float(bits.mean()),
            "bits_per_code_by_depth": bits.tolist(),
            "grad_norm": grad_norm(self.engine),
            "rate": rate,
            "skipped_steps": self.guard.skipped,
            **self.meter.row(),
            "time": time.time(),
        }
        self.curve.add(row)
        speed = f"{row['images_per_second']:.4g} images/s" + (f", MFU {row['mfu']:.0%}" if "mfu" in row else "")
        self.note = f"{row['bits_per_code']:.3f} bits a code, {speed}"

    def _validate(self) -> None:
        plain = self._validation_bits()
        with self.ema.in_place():
            smooth = self._validation_bits()
        self.curve.add(
            {
                "step": self.step,
                "val_bits_per_code": float(plain.mean()),
                "val_ema_bits_per_code": float(smooth.mean()),
                "val_bits_per_code_by_depth": plain.tolist(),
                "val_ema_bits_per_code_by_depth": smooth.tolist(),
                "time": time.time(),
            }
        )

    def _draw(self) -> None:
        """Draws a picture of samples: FOLDER/samples/step_XXXXXXXX.png, and wandb."""
        with self.ema.in_place() if self.spec.sample.ema else nullcontext():
            picture = draw_grid(whole_model(self.engine), self.spec, self.tokenizer, self.control)
        if picture is not None:
            data, name = png(picture), f"{checkpoint.step_name(self.step)}.png"
            storage.write_bytes(storage.join(self.folder, "samples", name), data)
            self.curve.add_picture(self.step, data)

    @torch.no_grad()
    def _validation_bits(self) -> Tensor:
        """Bits by depth, float64 [D], on the first validation_images of the validation set, the same for any world."""
        self.engine.eval()
        images = min(self.part.validation_images, len(self.validation))
        size = min(self.micro, math.ceil(images / self.world))
        starts = range(0, images, size)
        total = torch.zeros(self.spec.shape.depth, dtype=torch.float64)
        for number in range(self.rank, self.world * math.ceil(len(starts) / self.world), self.world):
            first = starts[number % len(starts)]  # ranks without a share compute along: stage 3 needs all of them
            count = min(size, images - first)
            codes, classes = self.validation.in_order(first, count)
            losses = self.engine(self._tensor(codes), self._tensor(classes), return_loss=True)
            total += losses.double().cpu() * (count / images if number < len(starts) else 0.0)
        self.engine.train()
        dist.all_reduce(total, group=self.control)
        return total / math.log(2)

    # ---- stopping and saving ---------------------------------------------------------------------------------------
    def _agree_to_stop(self) -> bool:
        """Whether any rank was told to stop. Also completes a checkpoint once no rank is writing any more."""
        flags = torch.tensor([self.told, self.saver.busy], dtype=torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        if not flags[1]:
            self.saver.commit(self.part.keep_last, self.part.keep_every)
        return bool(flags[0])

    def save(self) -> None:
        """Begins a checkpoint of this step, unless it is the one resumed from or just written."""
        if self.saved == self.step:
            return
        self.finish_saving()
        self.curve.flush()
        place = {"step": self.step, "position": self.position, "guard": self.guard.state()}
        self.saver.start({**place, "spec": self.spec.model_dump(mode="json")})
        self.saved = self.step

    def finish_saving(self) -> None:
        """Waits for the checkpoint that is being written, on all ranks."""
        self.saver.wait()
        dist.barrier(group=self.control)
        self.saver.commit(self.part.keep_last, self.part.keep_every)
        dist.barrier(group=self.control)

    def export(self) -> None:
        """Writes transformer.safetensors, ema.safetensors, transformer.json and, last, `done`, from the checkpoint."""
        uri = checkpoint.latest(self.folder)
        if self.rank or uri is None:
            return
        stored = checkpoint.Stored(uri, checkpoint.read_state(uri))
        shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self.engine.module.named_parameters()}
        with storage.writable_folder(self.folder) as folder:
            for kind, name in ((checkpoint.WEIGHT, WEIGHTS), (checkpoint.AVERAGE, EMA_WEIGHTS)):
                write_safetensors(folder / name, checkpoint.merged(stored, kind, shapes))
            (folder / CONFIG).write_text(json.dumps(asdict(config_of(self.spec)), indent=1) + "\n")
        storage.write_text(storage.join(self.folder, "done"), json.dumps({"step": self.step}) + "\n")


def fit(spec: Spec, root: str, user_config: dict[str, Any] | None = None) -> bool:
    """Trains to spec.train.steps and writes ROOT/transformer; False where it was told to stop before.

    Raises ValueError for a root made for something else, damaged data, and a loss that is not finite.
    """
    digest.claim(storage.join(root, "transformer"), identity(spec, root))
    if dist.get_rank() == 0:
        record_spec(spec, root, "transformer", ("transformer", "train"))
    if finished_step(root) >= spec.train.steps:
        return True
    run = Run(spec, root, user_config)
    finished = run.train()
    if finished:
        run.export()
    run.loader.close()
    run.validation.close()
    run.curve.finish()
    run.engine.destroy()
    dist.barrier()
    return finished


def join_ranks(timeout: timedelta) -> None:
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
    deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timeout, verbose=False)


def main() -> None:
    """Entry of the launcher: every rank trains on its share of each batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--spec", help="a YAML file (default: what the training began with, else ROOT/spec.yaml)")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    parser.add_argument("--deepspeed_config", help="JSON that adds what the spec does not own")
    arguments = parser.parse_args()
    root = storage.absolute(arguments.root)
    try:
        spec = read_spec(arguments.spec, root) if arguments.spec else spec_of(root, "transformer")
        join_ranks(timedelta(seconds=spec.train.rank_timeout))
        finished = fit(spec, root, read_user_config(arguments.deepspeed_config))
    except (ValueError, FileNotFoundError) as error:
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
