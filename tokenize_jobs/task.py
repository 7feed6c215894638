"""The tokenizer in training: model, discriminator, optimizers, moving average and images. One optimizer step a call.

Every step's images and random numbers are a function of (seed, position). Gradients are summed over the ranks after the
last micro batch, in one collective: ranks may hold different numbers of images, and nothing has to match but the
number of micro batches.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data_specs import open_shards, storage
from data_specs.ahead import in_threads
from data_specs.reader import ShardSet
from data_specs.records import CheckpointFile, TaskState, TokenizerState
from data_specs.spec import Spec
from data_specs.telemetry import Row
from tokenize_jobs.batches import draw, read_view, split_batch, stacked
from tokenize_jobs.checkpoint import StoredTensors
from tokenize_jobs.device import (
    autocast,
    memory_of,
    naming_what_to_lower,
    pick_device,
    to_device,
    training_layout,
)
from tokenize_jobs.ema import MovingAverage
from tokenize_jobs.memory import fitting_micro_batch
from tokenize_jobs.networks import Losses, Networks, initial_model, lpips_of
from tokenize_jobs.quantizer import all_sum
from tokenize_jobs.ranks import Ranks, common_dtype
from tokenize_jobs.statistics import CodeStatistics, psnr
from tokenize_jobs.tensors import to_host
from tokenize_jobs.trainer import Step, Validation
from tokenize_jobs.views import Pixels, center_view
from tokenize_jobs.weights import save_tokenizer, stored_tensors

VALIDATION_IMAGES = 64
STEPS_AHEAD = 2  # whose images are read before their use


# ---- the task ------------------------------------------------------------------------------------------------------
class TokenizerTask:
    """A tokenizer in training (`trainer.Task`)."""

    picture_every: int | None = None

    def __init__(self, spec: Spec, root: str, ranks: Ranks) -> None:
        self.spec = spec
        self.section = spec.tokenizer
        self.ranks = ranks
        self.device = pick_device()
        self.layout = training_layout(self.device)
        self.dtype: torch.dtype = getattr(torch, common_dtype(self.section.dtype, ranks))
        memory = min(ranks.gather(memory_of(self.device)))  # the least: all make the same number of micro batches
        micro = self.section.micro_batch_size or fitting_micro_batch(spec, ranks.world, self.dtype, memory)
        self.micro_batches = split_batch(self.section.batch_size, self.ranks.world, micro)
        self.micro_sizes = [len(images) for images in self.micro_batches[ranks.rank]]
        self.sets = [open_shards(storage.join(root, entry.manifest)) for entry in self.section.images]
        if empty := [images.uri for images in self.sets if not len(images)]:
            raise ValueError(f"{empty[0]}: the shard set is empty: there is nothing to learn from")
        self.held_out = _held_out(spec, root)
        torch.manual_seed(spec.seed)
        lpips = lpips_of(spec, root)
        self.networks = Networks.of(self.section, initial_model(spec, root), lpips).to(self.device)
        self.model = self.networks.model
        self.optimizers = self.networks.optimizers()
        self.ema = MovingAverage(_floats(self.model).values(), self.section.ema) if self.section.ema else None
        self.images: Generator[Pixels, None, None] | None = None
        config = self.model.config
        self.statistics = CodeStatistics(config.depth, config.codebook_size, self.device)
        if self.section.compile:
            for module in (self.model.encoder, self.model.decoder, lpips):
                if module is not None:
                    module.compile()

    # ---- data ------------------------------------------------------------------------------------------------------
    def begin(self, position: int, num_steps: int) -> None:
        """Be ready to make `num_steps` steps on the data from sample `position` on."""
        self.close()
        self.step_number = self.section.steps - num_steps
        self.draw_number = position // self.section.batch_size
        reads = self._reads(range(self.draw_number, self.draw_number + num_steps))
        self.images = in_threads(reads, self._num_threads(), STEPS_AHEAD * sum(self.micro_sizes))

    def _reads(self, numbers: range) -> Iterator[Callable[[], Pixels]]:
        """Yield what reads each image of this rank in the steps of these numbers."""
        weights = [entry.weight for entry in self.section.images]
        for number in numbers:
            drawn = draw(self.sets, weights, self.section.batch_size, self.spec.seed, number)
            for image in chain.from_iterable(self.micro_batches[self.ranks.rank]):
                yield partial(read_view, self.sets, drawn[image], self.spec.shape.image_size)

    def _num_threads(self) -> int:
        """Threads that decode images: spare cores where a GPU computes, one where the cores do."""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(1, min(8, len(os.sched_getaffinity(0)) // local)) if self.device.type == "cuda" else 1

    def close(self) -> None:
        """End the threads that read ahead."""
        if self.images is not None:
            self.images.close()

    # ---- a step ----------------------------------------------------------------------------------------------------
    def step(self, rate: float, limit: float) -> Step:
        """Make one step, unless the mean squared error is over `limit`, or it or the gradient is not finite."""
        started = time.monotonic()
        assert self.images is not None
        images = stacked(self.images, self.micro_sizes)
        waited = time.monotonic() - started
        seed = np.random.SeedSequence((self.spec.seed, self.draw_number, self.ranks.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]) >> 1)
        before = [buffer.clone() for buffer in self._buffers()]
        with naming_what_to_lower("tokenizer.micro_batch_size", max(self.micro_sizes)):
            losses, codes = self._backward([to_device(micro, self.device, self.layout) for micro in images])
        mse, norm = self._sum_over_ranks(losses["mse"])
        applied = math.isfinite(norm) and mse <= limit
        if applied:
            self._update(rate)
            self.statistics.add(losses, codes, self.model.quantizer.restarts)
        else:
            torch._foreach_copy_(self._buffers(), before)
        self.step_number += 1
        self.draw_number += 1
        return Step(mse, applied, waited)

    def _buffers(self) -> list[Tensor]:
        """Return the buffers that a forward pass changes: codebooks and the discriminator's running means."""
        return [buffer for net in self.networks.trained for buffer in net.buffers()]

    def _backward(self, micros: list[Tensor]) -> tuple[Losses, Tensor]:
        """Add up the gradients of this rank's micro batches [b, 3, H, W].

        Returns:
            This rank's part of the batch's mean losses (to be summed over ranks), and codes.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total: Losses = {}
        codes = []
        for images, share in zip(micros, self._shares(), strict=True):
            weight = len(images) / self.section.batch_size
            losses, of_micro = self.networks.add_gradients(images, self.dtype, self._has_begun, share, weight)
            codes.append(of_micro)
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss * weight
        return total, torch.cat(codes)

    def _shares(self) -> list[float]:
        """Return this rank's share of all ranks' images, micro batch by micro batch."""
        of_all = [sum(map(len, micros)) for micros in zip(*self.micro_batches, strict=True)]
        return [size / count for size, count in zip(self.micro_sizes, of_all, strict=True)]

    @property
    def _has_begun(self) -> bool:
        """Whether the discriminator takes part."""
        return self.section.gan_start is not None and self.step_number >= self.section.gan_start

    def _sum_over_ranks(self, mse: Tensor) -> tuple[float, float]:
        """Sum the gradients over the ranks, with the mean squared error; return that and the gradients' norm."""
        by_network = [[p.grad for p in net.parameters() if p.grad is not None] for net in self.networks.trained]
        gradients = [gradient for of_network in by_network for gradient in of_network]
        if self.ranks.world > 1:
            *summed, mse = _all_sum([*gradients, mse])
            torch._foreach_copy_(gradients, summed)
        norms = torch.stack([torch.nn.utils.get_total_norm(of_network) for of_network in by_network if of_network])
        self.grad_norm = float(norms[0])
        return float(mse), float(norms.sum())

    def _update(self, rate: float) -> None:
        for optimizer in self.optimizers if self._has_begun else self.optimizers[:1]:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if self.ema:
            self.ema.update(self.step_number)

    # ---- accounts --------------------------------------------------------------------------------------------------
    def report(self, images_per_second: float) -> tuple[Row, str]:
        """Return the log's row of the steps since the last one, and what it says in a few words."""
        row = self.statistics.report()
        if not row:
            return {}, "no step was made"
        note = f"PSNR {row['psnr']:.2f} dB, codebook used {min(row['usage']):.0%}, {images_per_second:.4g} images/s"
        return {**row, "grad_norm": self.grad_norm}, note

    @torch.no_grad()
    def validate(self) -> Validation:
        """Return the mean squared error on held-out images, whole and unmirrored, or on the first it learns from."""
        images = self.held_out if self.held_out is not None else self.sets[0]
        size = self.spec.shape.image_size
        wanted = min(VALIDATION_IMAGES, len(images))
        pixels = np.stack([center_view(images[number]["image"], size) for number in range(wanted)])
        weights = self._mean_squared_error(pixels)
        with self._averaged():
            ema = self._mean_squared_error(pixels) if self.ema else None
        if self.held_out is None:
            return Validation({}, weights, ema)
        row = {"val_psnr": psnr(weights)} | ({} if ema is None else {"val_ema_psnr": psnr(ema)})
        return Validation(row, weights, ema)

    def _mean_squared_error(self, pixels: Pixels) -> float:
        self.model.eval()
        total = 0.0
        size = max(self.micro_sizes)
        for start in range(0, len(pixels), size):
            images = to_device(pixels[start : start + size], self.device, self.layout)
            with autocast(self.device, self.dtype):
                reconstruction = self.model(images)[0]
            total += float((reconstruction.float() - images).square().mean((1, 2, 3)).sum())
        self.model.train()
        return total / len(pixels)

    def _averaged(self) -> AbstractContextManager[None]:
        """Put the moving average, where there is one, in the place of the weights while a block runs."""
        return self.ema.in_place() if self.ema else nullcontext()

    def picture(self) -> bytes | None:
        """Draw nothing: `dnd reconstruct` shows what a tokenizer can do."""
        return None

    # ---- saving ----------------------------------------------------------------------------------------------------
    def _named(self) -> dict[tuple[str, str], Tensor]:
        """Tensors that a resumed run needs beside the optimizers', by kind and name; all ranks hold the same."""
        by_kind = {"model": stored_tensors(self.model)}
        if self.networks.discriminator is not None:
            by_kind["discriminator"] = stored_tensors(self.networks.discriminator)
        if self.ema:
            by_kind["ema"] = dict(zip(_floats(self.model), self.ema.averages, strict=True))
        return {(kind, name): tensor for kind, tensors in by_kind.items() for name, tensor in tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the flat tensors that this rank answers for."""
        named = self._named()
        for number, (optimizer, net) in enumerate(zip(self.optimizers, self.networks.trained, strict=True)):
            for name, parameter in net.named_parameters():
                for kind, tensor in optimizer.state.get(parameter, {}).items():
                    named[f"adam{number}.{kind}", name] = tensor
        named |= {("statistics", name): tensor for name, tensor in self.statistics.tensors().items()}
        mine = list(named.items())[self.ranks.rank :: self.ranks.world]
        return to_host({f"{kind}/{name}/0": t.detach().reshape(-1) for (kind, name), t in mine})

    def state(self) -> TokenizerState:
        """Return what a resumed run needs beside the tensors."""
        return TokenizerState(statistics_steps=self.statistics.num_steps, config=self.model.config.to_json())

    @torch.no_grad()
    def load(self, stored: StoredTensors, state: TaskState) -> None:
        """Take the tensors and the state of a checkpoint."""
        if not isinstance(state, TokenizerState):
            raise ValueError(f"{stored.uri}: not a checkpoint of a tokenizer")
        for (kind, name), tensor in self._named().items():
            tensor.copy_(stored.tensor(kind, name, tensor.shape))
        for number, (optimizer, net) in enumerate(zip(self.optimizers, self.networks.trained, strict=True)):
            optimizer.state.clear()
            for name, parameter in net.named_parameters():
                if (f"adam{number}.step", name) in stored.runs:
                    optimizer.state[parameter] = _moments(stored, f"adam{number}", name, parameter)
        sums = {name: stored.flat("statistics", name) for kind, name in stored.runs if kind == "statistics"}
        self.statistics.restore(sums, state.statistics_steps, first=self.ranks.rank == 0)

    def export(self, stored: StoredTensors, folder: Path) -> dict[str, CheckpointFile]:
        """Write tokenizer.safetensors and tokenizer.json: the moving average where there is one."""
        with self._averaged():
            return {"tokenizer.safetensors": save_tokenizer(self.model, folder)}


def _floats(model: nn.Module) -> dict[str, Tensor]:
    """Return what is averaged of a model: its weights and codebooks by name."""
    return {name: tensor for name, tensor in stored_tensors(model).items() if tensor.is_floating_point()}


def _moments(stored: StoredTensors, prefix: str, name: str, parameter: Tensor) -> dict[str, Tensor]:
    """Return what Adam keeps of a parameter; the number of steps stays on the CPU."""
    kinds = ("exp_avg", "exp_avg_sq")
    moments = {kind: stored.tensor(f"{prefix}.{kind}", name, parameter.shape).to(parameter) for kind in kinds}
    return {"step": stored.tensor(f"{prefix}.step", name, ()), **moments}


def _all_sum(tensors: list[Tensor]) -> list[Tensor]:
    """Return the sums over the ranks of many tensors, in one collective."""
    flat = all_sum(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _held_out(spec: Spec, root: str) -> ShardSet | None:
    """Return the validation images that the spec has tokenized, or None where they are missing or empty."""
    uri = spec.tokenize.images.get("val")
    if uri is None or not storage.exists(storage.join(root, uri, "manifest.json")):
        return None
    images = open_shards(storage.join(root, uri))
    return images if len(images) else None
