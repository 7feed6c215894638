"""Training of the tokenizer on image shards: `dnd train-tokenizer SPEC --root ROOT --ranks N`.

On several machines: `torchrun --nnodes … -m tokenize_jobs.fit --root ROOT`, `deepspeed --module tokenize_jobs.fit …`.
Every step's images and random numbers are a function of (seed, step): a resumed run goes on exactly as it would have.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_specs import digest, open_shards, storage
from data_specs.curve import Curve
from data_specs.manifest import read_manifest
from data_specs.progress import Progress
from data_specs.records import Identity
from data_specs.root import read_spec, record_spec, spec_of
from data_specs.spec import Spec
from tokenize_jobs.batches import Place, deal, draw, read_batches
from tokenize_jobs.device import layout, pick_device, to_tensor, training_dtype
from tokenize_jobs.learner import Learner
from tokenize_jobs.losses import LPIPS, LPIPS_PACKAGE, load_lpips
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from tokenize_jobs.views import Pixels
from tokenize_jobs.weights import WEIGHTS, load_tokenizer, save_tokenizer
from tokenize_jobs.window import Window

FREE_ON_RESUME = {"micro_batch_size", "checkpoint_every", "log_every", "dtype", "compile"}
WRONG = 2  # exit code of a mistake that no restart mends
log = logging.getLogger(__name__)


# ---- what is trained -----------------------------------------------------------------------------------------------
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
        **_learning(spec),
    )


def _learning(spec: Spec) -> dict[str, Any]:
    """How the codebook learns: the spec's also where the architecture comes from `init_from`."""
    part = spec.tokenizer
    return {
        "decay": part.decay,
        "commitment_weight": part.commitment,
        "restart_unused_codes": part.restart_unused,
    }


def initial_model(spec: Spec, root: str) -> RQVAE:
    """A new tokenizer, or that of `tokenizer.init_from`; ValueError where its codes are not the spec's."""
    wanted, source = config_of(spec), spec.tokenizer.init_from
    if source is None:
        return RQVAE(wanted)
    loaded = load_tokenizer(storage.join(root, source))
    config = loaded.config
    if (config.code_shape, config.codebook_size) != (wanted.code_shape, wanted.codebook_size):
        raise ValueError(
            f"tokenizer.init_from {source}: its codes are {list(config.code_shape)} of {config.codebook_size} rows, "
            f"the spec's {list(wanted.code_shape)} of {wanted.codebook_size}: make shape agree with it"
        )
    model = RQVAE(replace(config, **_learning(spec)))
    model.load_state_dict(loaded.state_dict())
    return model


def lpips_of(spec: Spec, root: str) -> LPIPS | None:
    """LPIPS with the weights that the spec names; ValueError or FileNotFoundError where they are not there."""
    weights = spec.tokenizer.lpips_weights
    if weights is None:
        return None
    return load_lpips(weights if weights == LPIPS_PACKAGE else local(storage.join(root, weights)))


def identity(spec: Spec, root: str) -> Identity:
    """What the trained tokenizer depends on. Steps count only where the schedule of the rate depends on them."""
    part = spec.tokenizer
    free = FREE_ON_RESUME | ({"steps"} if part.schedule == "constant" else set())
    device = pick_device()
    inputs = {
        f"images.{number}": read_manifest(_manifest_uri(storage.join(root, entry.manifest))).digest
        for number, entry in enumerate(part.images)
    }
    if part.init_from:
        inputs["init_from"] = _sha256(storage.join(root, part.init_from, WEIGHTS))
    return Identity(
        stage="tokenizer",
        spec={
            "shape": spec.shape.model_dump(mode="json"),
            "tokenizer": part.model_dump(mode="json", exclude=free),
        },
        inputs=inputs,
        seed=spec.seed,
        versions={"torch": torch.__version__, "device": device.type, "dtype": str(training_dtype(spec, device))},
    )


def _manifest_uri(uri: str) -> str:
    return uri if uri.endswith(".json") else storage.join(uri, "manifest.json")


def _sha256(uri: str) -> str:
    try:
        return hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    except FileNotFoundError:
        raise ValueError(f"{uri}: no tokenizer to start from (tokenizer.init_from)") from None


# ---- the run -------------------------------------------------------------------------------------------------------
def fit(spec: Spec, root: str) -> None:
    """Trains to spec.tokenizer.steps and writes ROOT/tokenizer; goes on from its checkpoint; a finished run returns.

    An imported tokenizer stays as it is. Raises ValueError where the root's tokenizer was made for something else.
    """
    folder = storage.join(root, "tokenizer")
    if is_imported(folder):
        print(f"{folder}: imported, not trained; to fine-tune it, name it as tokenizer.init_from under another root")
        return
    lpips_of(spec, root)  # refused before the folder is claimed
    digest.claim(folder, identity(spec, root))
    if not (dist.is_initialized() and dist.get_rank()):
        record_spec(spec, root, "tokenizer", ("tokenizer",))
    if _finished_step(folder) >= spec.tokenizer.steps:
        return
    run = Run(spec, root)
    run.train()
    run.export()


def is_imported(folder: str) -> bool:
    """Whether the tokenizer of a folder came from elsewhere (`dnd import tokenizer`)."""
    return storage.exists(storage.join(folder, WEIGHTS)) and not storage.exists(storage.join(folder, "stage.json"))


def _finished_step(folder: str) -> int:
    uri = storage.join(folder, "done")
    return int(json.loads(storage.read_text(uri))["step"]) if storage.exists(uri) else 0


class Run:
    """A training run: what learns, and where in the data it is."""

    def __init__(self, spec: Spec, root: str) -> None:
        self.spec, self.part, self.folder = spec, spec.tokenizer, storage.join(root, "tokenizer")
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = pick_device()
        self.dealt = deal(self.part.batch_size, self.world, self.part.micro_batch_size)
        self.sets = [open_shards(storage.join(root, entry.manifest)) for entry in self.part.images]
        torch.manual_seed(spec.seed)
        lpips = lpips_of(spec, root)
        model = initial_model(spec, root)
        lpips = lpips.to(self.device) if lpips else None
        self.learner = Learner(model, self.part, self.device, training_dtype(spec, self.device), lpips)
        self.window = Window(model.config.depth, model.config.codebook_size, self.device)
        self.step, self.note, self.warned = 0, "", False
        self._resume()
        self.curve = Curve(self.folder, self.step, self.rank == 0, f"{spec.name} tokenizer")

    # ---- training --------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Makes the steps that are left."""
        progress = Progress("train-tokenizer", self.part.steps, "steps", self.step)
        self.logged = (self.step, time.monotonic())
        for images in read_batches(self.sets, self._places(), self.spec.shape.image_size, self._threads()):
            self.train_step(images)
            if self.rank == 0:
                progress.advance(1, self.note)
            if self.step % self.part.checkpoint_every == 0 or self.step == self.part.steps:
                self.save()
        if self.rank == 0:
            progress.finish(self.note)
        self.curve.finish()

    def _places(self) -> Iterator[list[list[Place]]]:
        """Places of this rank's micro batches, for each step to come."""
        weights = [entry.weight for entry in self.part.images]
        for step in range(self.step, self.part.steps):
            places = draw(self.sets, weights, self.part.batch_size, self.spec.seed, step)
            yield [[places[position] for position in micro] for micro in self.dealt[self.rank]]

    def _threads(self) -> int:
        """Threads that decode images: spare cores where a GPU computes, one where the cores do."""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(1, min(8, len(os.sched_getaffinity(0)) // local)) if self.device.type == "cuda" else 1

    def train_step(self, images: list[Pixels]) -> None:
        """One optimizer step on this rank's micro batches."""
        state = np.random.SeedSequence((self.spec.seed, self.step, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)
        part = self.part
        rate = part.learning_rate * rate_factor(part.schedule, part.warmup_steps, part.steps, self.step)
        self.learner.set_rate(rate)
        losses, codes = self.learner.step(
            [self._tensor(micro) for micro in images], self._shares(), part.batch_size, self.step
        )
        self.window.add(losses, codes, self.learner.model.quantizer.restarts)
        self.step += 1
        if self.step % part.log_every == 0 or self.step == part.steps:
            self._log(rate)

    def _tensor(self, images: Pixels) -> torch.Tensor:
        return to_tensor(images).to(self.device, memory_format=layout(self.device))

    def _shares(self) -> list[float]:
        """This rank's part of all ranks' images, micro batch by micro batch."""
        of_all = [sum(map(len, micros)) for micros in zip(*self.dealt, strict=True)]
        return [len(micro) / count for micro, count in zip(self.dealt[self.rank], of_all, strict=True)]

    def _log(self, rate: float) -> None:
        now = time.monotonic()
        speed = (self.step - self.logged[0]) * self.part.batch_size / (now - self.logged[1])
        self.logged = (self.step, now)
        row = self.window.row()
        self.curve.add({"step": self.step, **row, "rate": rate, "images_per_second": speed, "time": time.time()})
        self.note = f"PSNR {row['psnr']:.2f} dB, codebook used {min(row['usage']):.0%}, {speed:.4g} images/s"
        if row["collapsed"] and not self.warned and self.rank == 0:
            depths = ", ".join(map(str, row["collapsed"]))
            log.warning(
                f"step {self.step}: the codebook has collapsed at depth {depths}: less than 5 % of its rows are used. "
                "Try tokenizer.restart_unused=true or a lower tokenizer.learning_rate"
            )
        self.warned = bool(row["collapsed"])

    # ---- saving ----------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Writes a checkpoint: whole, then named by `latest`, then the older ones go."""
        window = self.window.state()
        if self.rank:
            return
        buffer = io.BytesIO()
        torch.save({"step": self.step, "learner": self.learner.state_dict(), "window": window}, buffer)
        name = f"step_{self.step:08d}/state.pt"
        storage.write_bytes(storage.join(self.folder, name), buffer.getvalue())
        self.curve.flush()
        storage.write_text(storage.join(self.folder, "latest"), name)
        for file in list(storage.list_files(self.folder)):
            if file.uri.endswith("/state.pt") and not file.uri.endswith(name):
                storage.delete(file.uri)

    def _resume(self) -> None:
        latest = storage.join(self.folder, "latest")
        if not storage.exists(latest):
            return
        path = storage.local_copy(storage.join(self.folder, storage.read_text(latest).strip()))
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.learner.load_state_dict(state["learner"])
        self.window.restore(state["window"], first=self.rank == 0)
        self.step = state["step"]

    def export(self) -> None:
        """Writes tokenizer.safetensors, tokenizer.json and, last, `done`."""
        if self.rank == 0:
            with storage.writable_folder(self.folder) as folder:
                save_tokenizer(self.learner.result(), folder)
            storage.write_text(storage.join(self.folder, "done"), json.dumps({"step": self.step}) + "\n")


def local(uri: str) -> Path:
    """A local path of a file or folder."""
    return storage.local_copy(uri) if storage.stat(uri) else storage.local_folder(uri)


def rate_factor(schedule: str, warmup: int, steps: int, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then constant or a cosine to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))


def main() -> None:
    """Entry of the launchers: every rank trains on its share of each batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher gives it
    parser.add_argument("--spec", help="a YAML file (default: what the training began with, else ROOT/spec.yaml)")
    arguments = parser.parse_args()
    root = arguments.root
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(pick_device())
    try:
        fit(read_spec(arguments.spec, root) if arguments.spec else spec_of(root, "tokenizer"), root)
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"train-tokenizer: {error}", file=sys.stderr, flush=True)
        sys.exit(WRONG)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
