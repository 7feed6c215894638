"""Training of the tokenizer on image shards: `dnd train-tokenizer SPEC --root ROOT`, `torchrun -m tokenize_jobs.fit`.

Every step's images are a function of (seed, step), so a resumed run goes on exactly as it would have.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_specs import digest, open_shards, storage
from data_specs.manifest import read_manifest
from data_specs.progress import Progress
from data_specs.reader import ShardSet
from data_specs.spec import Spec, parse_spec
from tokenize_jobs.device import autocast, fast_dtype, pick_device
from tokenize_jobs.quantizer import codebook_health
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from tokenize_jobs.views import center_view
from tokenize_jobs.weights import load_tokenizer, save_tokenizer

FREE_ON_RESUME = {"steps", "micro_batch_size", "checkpoint_every", "log_every"}


def config_of(spec: Spec) -> RQVAEConfig:
    """The model's configuration from the spec."""
    part, shape = spec.tokenizer, spec.shape
    return RQVAEConfig(
        image_size=(shape.image_size, shape.image_size),
        grid=shape.grid,
        depth=shape.depth,
        codebook_size=shape.codebook_size,
        shared_codebook=part.shared_codebook,
        embed_dim=part.embed_dim,
        ch=part.channels,
        ch_mult=part.channel_multipliers,
        num_res_blocks=part.res_blocks,
        attn_resolutions=part.attention_sizes,
        z_channels=part.embed_dim,
        patch=part.patch,
        shortcut=part.shortcut,
        decay=part.decay,
        commitment_weight=part.commitment,
        restart_unused_codes=part.restart_unused,
        gradient="rotation" if part.rotation_trick else "straight_through",
        codebook_init="kmeans" if part.kmeans_init else "normal",
    )


def identity(spec: Spec, root: str) -> digest.Identity:
    """What the trained tokenizer depends on."""
    inputs = [read_manifest(storage.join(root, s.manifest, "manifest.json"))["digest"] for s in spec.tokenizer.images]
    part = spec.tokenizer.model_dump(mode="json", exclude=FREE_ON_RESUME)
    versions = {"torch": torch.__version__, "device": pick_device().type}
    return {
        "stage": "tokenizer",
        "shape": spec.shape.model_dump(mode="json"),
        "tokenizer": part,
        "seed": spec.seed,
        "images": inputs,
        "versions": versions,
    }


def fit(spec: Spec, root: str) -> None:
    """Trains to spec.tokenizer.steps and writes ROOT/tokenizer; resumes from its checkpoint; a finished run returns.

    Raises ValueError where the root's tokenizer was made for something else.
    """
    folder = storage.join(root, "tokenizer")
    digest.claim(folder, identity(spec, root))
    run = _Run(spec, root)
    if run.step >= spec.tokenizer.steps and storage.exists(storage.join(folder, "tokenizer.safetensors")):
        return
    progress = Progress("train-tokenizer", spec.tokenizer.steps, "steps", run.step)
    for images in run.batches():
        note = run.train_step(images)
        progress.advance(1, note)
        if run.step % spec.tokenizer.checkpoint_every == 0:
            run.save()
    run.save()
    run.export()
    progress.finish(run.last_note)


class _Run:
    """A training run: the model, its optimizer, and where in the data it stands."""

    def __init__(self, spec: Spec, root: str) -> None:
        self.spec, self.part, self.folder = spec, spec.tokenizer, storage.join(root, "tokenizer")
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device, self.dtype, self.step, self.last_note = pick_device(), fast_dtype(), 0, ""
        self.sets = [open_shards(storage.join(root, entry.manifest)) for entry in self.part.images]
        torch.manual_seed(spec.seed)
        self.model = self._initial_model(root).to(self.device).train()
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net: nn.Module = self.model
        if self.world > 1:
            self.net = nn.parallel.DistributedDataParallel(self.model, broadcast_buffers=False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.part.learning_rate, betas=self.part.betas)
        self.codes_seen: list[Tensor] = []
        self._resume()

    def _initial_model(self, root: str) -> RQVAE:
        wanted = config_of(self.spec)
        if self.part.init_from is None:
            return RQVAE(wanted)
        model = load_tokenizer(storage.local_folder(storage.join(root, self.part.init_from)))
        if model.config.code_shape != wanted.code_shape or model.config.codebook_size != wanted.codebook_size:
            raise ValueError(
                f"tokenizer.init_from {self.part.init_from}: its codes are {model.config.code_shape}, "
                f"the spec's {wanted.code_shape}: make shape agree with it"
            )
        return model

    def batches(self) -> Iterator[Tensor]:
        """This rank's images of each step to come, [b, 3, H, W] in [-1, 1], decoded one step ahead."""
        steps = range(self.step, self.part.steps)
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(self._batch, step) for step in steps[:1]]
            for step in steps:
                images = ahead.pop().result()
                if step + 1 < self.part.steps:
                    ahead.append(pool.submit(self._batch, step + 1))
                yield to_tensor(images).to(self.device, memory_format=torch.channels_last)

    def _batch(self, step: int) -> np.ndarray:
        mine = slice(self.rank, self.part.batch_size, self.world)
        places = draw(self.sets, [s.weight for s in self.part.images], self.part.batch_size, self.spec.seed, step)[mine]
        size = self.spec.shape.image_size
        return np.stack([center_view(self.sets[number][index]["image"], size) for number, index in places])

    def train_step(self, images: Tensor) -> str:
        """One optimizer step; returns the note for the progress line."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.part.learning_rate * rate_factor(
                self.part.schedule, self.part.warmup_steps, self.part.steps, self.step
            )
        self.optimizer.zero_grad(set_to_none=True)
        micro = self.part.micro_batch_size or len(images)
        losses = [self._backward(part, len(part) / len(images)) for part in images.split(micro)]
        self.optimizer.step()
        self.step += 1
        if self.step % self.part.log_every == 0 or self.step == self.part.steps:
            self._log(torch.stack(losses).sum(0))
        return self.last_note

    def _backward(self, images: Tensor, share: float) -> Tensor:
        with autocast(self.device, self.dtype):
            reconstruction, commitment, codes = self.net(images)
        error = reconstruction.float() - images
        distance = error.abs().mean() if self.part.reconstruction == "l1" else error.square().mean()
        ((distance + self.part.commitment * commitment) * share).backward()
        self.codes_seen = [*self.codes_seen[-7:], codes.detach()]
        return torch.stack([error.detach().square().mean(), commitment.detach()]) * share

    def _log(self, losses: Tensor) -> None:
        mse, commitment = losses.tolist()
        usage, perplexity = codebook_health(torch.cat(self.codes_seen), self.spec.shape.codebook_size)
        psnr = 10 * math.log10(4 / max(mse, 1e-12))
        self.last_note = f"PSNR {psnr:.2f} dB, codebook used {min(usage):.0%}"
        if min(usage) < 0.05 and self.step > self.part.steps // 2:
            self.last_note += " (warning: the codebook has collapsed)"
        if self.rank == 0:
            row = {
                "step": self.step,
                "mse": mse,
                "psnr": psnr,
                "commitment": commitment,
                "usage": usage,
                "perplexity": perplexity,
                "time": time.time(),
            }
            self.curve.append(row)

    def save(self) -> None:
        """Writes a checkpoint: whole, then named by `latest`, then the older ones go."""
        if self.rank:
            return
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "curve": self.curve,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        name = f"step_{self.step:08d}/state.pt"
        storage.write_bytes(storage.join(self.folder, name), buffer.getvalue())
        storage.write_text(storage.join(self.folder, "latest"), name)
        storage.write_text(
            storage.join(self.folder, "metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in self.curve)
        )
        for file in list(storage.list_files(self.folder)):
            if file.uri.endswith("/state.pt") and not file.uri.endswith(name):
                storage.delete(file.uri)

    def _resume(self) -> None:
        self.curve: list[dict[str, Any]] = []
        latest = storage.join(self.folder, "latest")
        if not storage.exists(latest):
            return
        path = storage.local_copy(storage.join(self.folder, storage.read_text(latest)))
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.curve = state["step"], state["curve"]

    def export(self) -> None:
        """Writes tokenizer.safetensors and tokenizer.json."""
        if self.rank == 0:
            with storage.writable_folder(self.folder) as folder:
                save_tokenizer(self.model.eval(), folder)


def rate_factor(schedule: str, warmup: int, steps: int, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then constant or a cosine to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))


def draw(sets: list[ShardSet], weights: list[float], batch: int, seed: int, step: int) -> list[tuple[int, int]]:
    """(set, index) of each image of a step; a function of (seed, step). Sets are taken by weight, images evenly."""
    rng = np.random.default_rng((seed, step))
    numbers = rng.choice(len(sets), size=batch, p=np.array(weights) / sum(weights))
    return [(int(n), int(rng.integers(len(sets[n])))) for n in numbers]


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def main() -> None:
    """Entry of torchrun: every rank trains on its share of each batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    root = parser.parse_args().root
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        fit(parse_spec(storage.read_text(storage.join(root, "spec.yaml")), f"{root}/spec.yaml"), root)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
